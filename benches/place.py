"""Where a benchmark runs: the directory has to be on a disk, and the report says on which."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

MEMORY = {"tmpfs", "ramfs", "devtmpfs"}


def file_system(directory: Path) -> tuple[str, str, str]:
    """Type, device and options of the file system below a directory, from /proc/mounts."""
    best, found = -1, ("unknown", "unknown", "")
    target = os.path.realpath(directory)
    mounts = Path("/proc/mounts")
    for line in mounts.read_text().splitlines() if mounts.exists() else []:
        device, point, kind, options, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:
            best, found = len(point), (kind, device, options)
    return found


def refuse_memory(directory: Path, allow: bool) -> None:
    """Ends the program if the directory is not on a disk: an fsync that does nothing measures nothing."""
    kind = file_system(directory)[0]
    if kind in MEMORY and not allow:
        sys.exit(
            f"{directory} is on {kind}, where fsync does nothing: the figures would mean nothing. "
            "Choose a directory on a disk with --dir, or say --allow-tmpfs."
        )


SNAPSHOT_SYNC = "fsync of the file, rename, fsync of the directory (durability='full')"


def describe(directory: Path, sync: str = SNAPSHOT_SYNC) -> dict[str, Any]:
    """What a reader of the figures has to know about the machine. `sync`: what is asked of the disk."""
    kind, device, options = file_system(directory)
    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "file_system": kind,
        "device": device,
        "mount_options": options,
        "sync": sync,
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": model,
        "cpus": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "free_gib": shutil.disk_usage(directory).free >> 30,
    }
