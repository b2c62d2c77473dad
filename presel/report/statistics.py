"""How sure a difference between two strategies is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from presel.report.collect import Run

_DRAWS = 5000
# Sums of the same scores differ by their order.
_TIE = 1e-9


@dataclass(frozen=True)
class Comparison:
    """A strategy beside another one on the same seeds, in shares of 1.

    Attributes:
        difference: Mean over seeds of the difference of the mean scores.
        low: Lower end of the 95 % interval of that difference; None of one seed, which knows no spread.
        high: Upper end, likewise.
        seeds: Seeds that both were run with.
        seeds_won: Those with the higher mean score.
        benchmarks: Benchmarks.
        benchmarks_won: Those with the higher mean over the seeds.
    """

    difference: float
    low: float | None
    high: float | None
    seeds: int
    seeds_won: int
    benchmarks: int
    benchmarks_won: int


def compare(ours: Sequence[Run], others: Sequence[Run], seed: int = 0) -> Comparison | None:
    """Compares two strategies by a paired bootstrap.

    Each of 5,000 draws takes seeds, and within every benchmark questions, with replacement, the same for
    both strategies; the interval holds the middle 95 % of the drawn differences. So it covers the chance in
    selection and tuning as well as the choice of questions; it is rather too wide than too narrow (pigeonhole
    bootstrap; Owen, 2007). Where another program evaluated, only seeds are drawn.

    Args:
        ours: Runs of a strategy, one a seed.
        others: Runs of the other, one a seed; their benchmarks hold the same questions.
        seed: Decides the draws.

    Returns:
        None where no seed is common to both.
    """
    pairs = [(a, b) for a in ours for b in others if a.seed == b.seed]
    if not pairs:
        return None
    by_benchmark = [_differences(pairs, benchmark) for benchmark in pairs[0][0].scores]
    low, high = _interval(by_benchmark, seed) if len(pairs) > 1 else (None, None)
    means = np.array([differences.mean(axis=1) for differences in by_benchmark])
    return Comparison(
        difference=float(means.mean()),
        low=low,
        high=high,
        seeds=len(pairs),
        seeds_won=int((means.mean(axis=0) > _TIE).sum()),
        benchmarks=len(means),
        benchmarks_won=int((means.mean(axis=1) > _TIE).sum()),
    )


def _interval(by_benchmark: Sequence[npt.NDArray[np.float64]], seed: int) -> tuple[float, float]:
    """The middle 95 % of the drawn differences; of each benchmark, (seeds, questions)."""
    rng = np.random.default_rng(seed)
    draws = np.zeros(_DRAWS)
    count = len(by_benchmark[0])
    seeds = rng.multinomial(count, np.full(count, 1 / count), size=_DRAWS) / count
    for differences in by_benchmark:
        questions = differences.shape[1]
        for draw in range(_DRAWS):
            counts = np.bincount(rng.integers(questions, size=questions), minlength=questions)
            draws[draw] += seeds[draw] @ differences @ counts / questions
    draws /= len(by_benchmark)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def _differences(pairs: Sequence[tuple[Run, Run]], benchmark: str) -> npt.NDArray[np.float64]:
    """Difference of every answer's score on a benchmark, (seeds, questions), or of the whole, (seeds, 1)."""
    if any(benchmark not in run.answers for pair in pairs for run in pair):
        return np.array([[a.scores[benchmark] - b.scores[benchmark]] for a, b in pairs])
    return np.array([(a.answers[benchmark] - b.answers[benchmark]).to_numpy(np.float64) for a, b in pairs])


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample, or None of fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
