"""The rule behind the `exact` allocations: largest remainder, mended so that it is monotone in the budget."""

import heapq

import numpy as np
import numpy.typing as npt

# Shares are sums and quotients of float64; a share this near to a whole number counts as whole.
_NOISE = 1e-9
# Keeps quotients finite: a weight below this share of the largest counts as this share.
_SMALLEST = 1e-100


def apportion(
    weights: npt.NDArray[np.float64], caps: npt.NDArray[np.int64], budget: int
) -> npt.NDArray[np.int64]:
    """Splits whole units among claimants in proportion to their weights, none above its cap.

    Largest remainder has the Alabama paradox: a claimant can lose a unit when the budget grows by one. So
    units are given one at a time, h = 1, 2, ..., by Webster's rule under the upper quota (Balinski and Young,
    *Fair Representation*, 1982), extended to caps. The ideal share of a claimant at budget h is
    `min(cap, level(h) * weight)`, with the water level chosen so that the shares sum to h. Its k-th unit may
    be given once its share has passed k - 1, and is the more urgent the sooner the share reaches k - 1/2. So:

    - the sum is exactly `min(budget, caps.sum())` and every cap holds;
    - nobody loses a unit when the budget grows, because a larger budget only continues the same sequence;
    - nobody gets more than its ideal share rounded up; nor less than it rounded down, but in rare cases of
      many claimants (1 in 3,000 random ones, `experiments/LOG.md`), by one;
    - large and small claimants are treated alike, and most results are those of largest remainder.

    Ties, that is units of equal urgency, go to the larger weight, then to the larger cap, then to the
    earlier position. Claimants of weight 0 wait until all others are full, and are then served in proportion
    to their caps.

    Args:
        weights: Finite, at least 0, shape (m,). Those below 1e-100 of the largest count as that.
        caps: At least 0, shape (m,).
        budget: Units to give, at least 0; time and memory grow with it (a second and 0.2 GB for a million).

    Returns:
        Units per claimant, shape (m,).
    """
    given = np.zeros(len(caps), dtype=np.int64)
    first = (weights > 0) & (caps > 0)
    budget_first = min(budget, int(caps[first].sum()))
    given[first] = _sequence(weights[first], caps[first], budget_first)
    last = (weights == 0) & (caps > 0)
    budget_last = min(budget - budget_first, int(caps[last].sum()))
    given[last] = _sequence(caps[last].astype(np.float64), caps[last], budget_last)
    return given


def _sequence(
    weights: npt.NDArray[np.float64], caps: npt.NDArray[np.int64], budget: int
) -> npt.NDArray[np.int64]:
    """Runs the sequence of `apportion` for weights and caps above 0 and a budget that fits."""
    given = np.zeros(len(caps), dtype=np.int64)
    if not budget:
        return given
    # Scaled by a power of two, which keeps quotients and so ties exact.
    scaled = weights / 2.0 ** np.frexp(weights.max())[1]
    claimant, urgency, release = _units(np.maximum(scaled, _SMALLEST), caps, budget)
    precedence = np.empty(len(caps), dtype=np.int64)
    precedence[np.lexsort((np.arange(len(caps)), -caps, -weights))] = np.arange(len(caps))
    order = np.argsort(release, kind="stable")
    waiting = list(
        zip(
            release[order].tolist(),
            urgency[order].tolist(),
            precedence[claimant[order]].tolist(),
            claimant[order].tolist(),
            strict=True,
        )
    )
    ready: list[tuple[float, int, int]] = []
    following = 0
    for step in range(1, budget + 1):
        # Should rounding leave no unit ready, the next one to be released is taken a step early.
        while following < len(waiting) and (waiting[following][0] <= step or not ready):
            heapq.heappush(ready, waiting[following][1:])
            following += 1
        given[heapq.heappop(ready)[2]] += 1
    return given


def _units(
    weights: npt.NDArray[np.float64], caps: npt.NDArray[np.int64], budget: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Lists the units that `budget` steps can reach.

    Returns:
        For every unit its claimant, the level at which its share is half reached, and the step from which it
        may be given.
    """
    full_at = caps / weights
    order = np.lexsort((weights, full_at))
    filled = np.concatenate([[0.0], np.cumsum(caps[order].astype(np.float64))])
    # Summed from the back, so that the last rates are not the difference of two large numbers.
    rate = np.concatenate([np.cumsum(weights[order][::-1])[::-1], [0.0]])
    levels = full_at[order]

    # Share of all claimants together at a level, and the level at which they reach the budget.
    def reached(level: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        full = np.searchsorted(levels, level, side="right")
        total: npt.NDArray[np.float64] = filled[full] + np.where(full < len(levels), level, 0.0) * rate[full]
        return total

    before = int(np.searchsorted(reached(levels), budget, side="left"))
    level = levels[-1] if before >= len(levels) else (budget - filled[before]) / rate[before]
    count = np.minimum(caps, np.floor(weights * level * (1 + _NOISE) + 1)).astype(np.int64)
    claimant = np.repeat(np.arange(len(caps)), count)
    number = np.arange(len(claimant)) - np.repeat(np.cumsum(count) - count, count) + 1
    urgency = (number - 0.5) / weights[claimant]
    passed = reached((number - 1) / weights[claimant])
    release = np.floor(passed + _NOISE * np.maximum(1.0, passed)).astype(np.int64) + 1
    return claimant, urgency, release
