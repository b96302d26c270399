"""Measuring contenders side by side: interleaved rounds, quantiles, ratios."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping

WARM_UP = 3  # rounds that are not counted


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def _nothing(_: str) -> None:
    """No preparation."""


def interleaved(
    timed: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    prepare: Callable[[str], None] = _nothing,
    before_round: Callable[[], None] = lambda: None,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Seconds of each call. Every round calls each one once, in an order of its own.

    `prepare` runs before each call and `before_round` before each round. Neither is timed, nor is releasing what a call
    returned.
    """
    names = list(timed)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    # A fixed order would let each one pay for what the same neighbour left behind.
    order = random.Random(seed)
    for number in range(-WARM_UP, rounds):
        before_round()
        order.shuffle(names)
        for name in names:
            prepare(name)
            call = timed[name]
            started = time.perf_counter()
            made = call()
            taken = time.perf_counter() - started
            del made
            if number >= 0:
                seconds[name].append(taken)
    return seconds


def summary(values: list[float]) -> dict[str, float]:
    """In milliseconds."""
    return {
        "median_ms": statistics.median(values) * 1e3,
        "mean_ms": statistics.fmean(values) * 1e3,
        "p99_ms": quantile(values, 0.99) * 1e3,
        "min_ms": min(values) * 1e3,
    }


def ratio(values: list[float], to: list[float]) -> dict[str, float]:
    """What one took as a multiple of what another took, in the same rounds."""
    return {
        "median": statistics.median(values) / statistics.median(to),
        "mean": statistics.fmean(values) / statistics.fmean(to),
        "p99": quantile(values, 0.99) / quantile(to, 0.99),
        # Rounds are pairs: each ratio is of two calls that ran close to each other.
        "median_of_pairs": statistics.median(mine / its for mine, its in zip(values, to, strict=True)),
    }


def slope(sizes: list[int], values: list[float]) -> float:
    """Of the straight line through the first and the last point, both axes logarithmic: 0 is constant, 1 is linear."""
    return math.log(values[-1] / values[0]) / math.log(sizes[-1] / sizes[0])
