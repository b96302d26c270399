"""Instructions that one journal save takes in the engine, counted by callgrind, against what was recorded.

    python benches/callgrind/check.py [--update]

The engine saves a session of 2,000 messages 100 and 600 times, each save adding two messages of 1 KiB and not synced;
the difference is what 500 turns take: adding the ready bytes and saving, the kernel not counted. It is the same on
every run to about one in ten thousand. Compilers differ, so figures are kept for each, by `rustc --version` and target.
More than 5 % over the recorded figure fails; a compiler without one gets one. `--update` records what was measured,
whatever it was before.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benches" / "results" / "callgrind.json"
COUNTS = (100, 600)
ALLOWED = 1.05


def output(*command: str | Path, **options: Any) -> str:
    """What a command says; ends the program if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr}{done.stdout}")
    return done.stdout + done.stderr


def compiler() -> tuple[str, str]:
    """`rustc --version` and the target that it compiles for."""
    target = re.search(r"^host: (.+)$", output("rustc", "--version", "--verbose"), re.MULTILINE)
    assert target is not None
    return output("rustc", "--version").strip(), target.group(1)


def build() -> Path:
    """The program that saves, built as the package is."""
    command = ["cargo", "build", "--release", "--locked", "--quiet", "-p", "perdure-core", "--example", "journal_save"]
    said = output(*command, "--message-format=json")
    for line in said.splitlines():
        if line.startswith("{"):
            message = json.loads(line)
            if message.get("executable") and message["target"]["name"] == "journal_save":
                return Path(message["executable"])
    sys.exit("cargo built no example journal_save")


def instructions(program: Path, count: int) -> int:
    """All instructions of a run that saves so often."""
    # What the shell has set could change the C library's way through it.
    environment = {name: os.environ[name] for name in ("PATH", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    valgrind = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
    said = output(*valgrind, program, str(count), env=environment)
    counted = re.search(r"Collected : (\d+)", said)
    if counted is None:
        sys.exit(f"callgrind counted nothing:\n{said}")
    return int(counted.group(1))


def verdict(recorded: int | None, measured: int) -> str | None:
    """What is wrong; None if nothing is."""
    if recorded is None or measured <= recorded * ALLOWED:
        return None
    return (
        f"a journal save takes {measured:,} instructions, {measured / recorded - 1:.1%} more than the {recorded:,} "
        f"that are recorded (allowed: {ALLOWED - 1:.0%}). Make it cheaper or, if it has to be, run "
        "`make callgrind-update` and say why in CHANGELOG.md"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--update", action="store_true", help="record what is measured, whatever is recorded")
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("callgrind is missing: install the package valgrind (Debian: apt-get install valgrind)")

    version, target = compiler()
    key = f"{version}, {target}"
    program = build()
    few, many = (instructions(program, count) for count in COUNTS)
    measured = round((many - few) / (COUNTS[1] - COUNTS[0]))
    report = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    entry = report.get(key)
    recorded = entry["instructions_per_save"] if entry else None
    beside = f"{recorded:,} recorded, {measured / recorded - 1:+.1%}" if recorded else "nothing recorded"
    print(f"callgrind: {measured:,} instructions a journal save ({beside}); {key}")
    wrong = None if options.update else verdict(recorded, measured)
    if wrong:
        sys.exit(wrong)
    if recorded is None or options.update:
        report[key] = {"instructions_per_save": measured, "valgrind": output("valgrind", "--version").strip()}
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(dict(sorted(report.items())), indent=2) + "\n", encoding="utf-8")
        print(f"recorded in {RESULTS.relative_to(ROOT)}: commit it")


if __name__ == "__main__":
    main()
