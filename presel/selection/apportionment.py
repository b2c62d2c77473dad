"""The rule behind the `exact` allocations: like largest remainder, but monotone in the budget.

Hence a larger budget's selection contains the smaller one's, and no instruction that was bought is wasted
(`docs/how_to/select_from_python.md`). No library offers monotone apportionment with caps.
"""

import heapq

import numpy as np

from presel.selection.arrays import FloatVector, IntVector

# Shares are sums and quotients of float64; a share this close to a whole number counts as whole.
_NOISE = 1e-9
# Keeps quotients finite: a weight below this share of the largest counts as this share.
SMALLEST = 1e-100


def apportion(weights: FloatVector, caps: IntVector, budget: int) -> IntVector:
    """Splits whole units over claimants (tasks, clusters) in proportion to their weights, none above its cap.

    Largest remainder has the Alabama paradox: a claimant can lose a unit when the budget grows by one. So
    units are given one at a time, h = 1, 2, ..., by Webster's rule under the upper quota (Balinski and Young,
    *Fair Representation*, 1982), extended to caps. The ideal share of a claimant at budget h is `min(cap,
    level(h) * weight)`, with the level chosen so that the shares sum to h. Its k-th unit may be given once
    its share has passed k - 1, and has the higher priority the sooner the share reaches k - 1/2. So:

    - the sum is exactly `min(budget, caps.sum())` and every cap holds;
    - no claimant loses a unit when the budget grows, because a larger budget continues the same sequence;
    - no claimant gets more than its ideal share rounded up. With many claimants one can get a unit less than
      its ideal share rounded down (about 1 in 3,000 random cases, `experiments/LOG.md`);
    - there is no bias toward large or small claimants, and most results equal those of largest remainder.

    Ties go to the larger weight, then to the larger cap, then to the earlier position. Claimants of weight 0
    get units only once all others are full, then in proportion to their caps.

    Args:
        weights: Finite, at least 0, shape (m,). Those below 1e-100 of the largest count as that.
        caps: At least 0, shape (m,).
        budget: Units to give, at least 0; time and memory grow with it (a second and 0.2 GB for a million).

    Returns:
        Units per claimant, shape (m,).
    """
    given = np.zeros(len(caps), dtype=np.int64)  # (m,)
    first = (weights > 0) & (caps > 0)
    budget_first = min(budget, int(caps[first].sum()))
    given[first] = _sequence(weights[first], caps[first], budget_first)
    last = (weights == 0) & (caps > 0)
    budget_last = min(budget - budget_first, int(caps[last].sum()))
    given[last] = _sequence(caps[last].astype(np.float64), caps[last], budget_last)
    return given


def _sequence(weights: FloatVector, caps: IntVector, budget: int) -> IntVector:
    """Runs the sequence of `apportion` for weights and caps above 0 and a budget that fits."""
    given = np.zeros(len(caps), dtype=np.int64)
    if not budget:
        return given
    # Scaled by a power of two, which keeps quotients, and so ties, exact.
    scaled = weights / 2.0 ** np.frexp(weights.max())[1]
    claimant, midpoint, release = _units(np.maximum(scaled, SMALLEST), caps, budget)  # (u,) each
    precedence = np.empty(len(caps), dtype=np.int64)  # (m,)
    precedence[np.lexsort((np.arange(len(caps)), -caps, -weights))] = np.arange(len(caps))
    order = np.argsort(release, kind="stable")
    waiting = list(
        zip(
            release[order].tolist(),
            midpoint[order].tolist(),
            precedence[claimant[order]].tolist(),
            claimant[order].tolist(),
            strict=True,
        )
    )
    ready: list[tuple[float, int, int]] = []
    following = 0
    for step in range(1, budget + 1):
        # If rounding leaves no unit ready, the next unit is released a step early.
        while following < len(waiting) and (waiting[following][0] <= step or not ready):
            heapq.heappush(ready, waiting[following][1:])
            following += 1
        given[heapq.heappop(ready)[2]] += 1
    return given


def _units(weights: FloatVector, caps: IntVector, budget: int) -> tuple[IntVector, FloatVector, IntVector]:
    """Lists the u units that `budget` steps can reach.

    Returns:
        For every unit, (u,) each: its claimant; the level at which the claimant's share reaches the middle of
        the unit, which is its priority, lowest first; and the step from which it may be given.
    """
    full_at = caps / weights  # (m,), the level at which each claimant is full
    order = np.lexsort((weights, full_at))
    filled = np.concatenate([[0.0], np.cumsum(caps[order].astype(np.float64))])  # (m + 1,)
    # Summed from the back, so that the last rates are not the difference of two large numbers.
    rate = np.concatenate([np.cumsum(weights[order][::-1])[::-1], [0.0]])  # (m + 1,)
    levels = full_at[order]  # (m,)

    def reached(level: FloatVector) -> FloatVector:
        """The sum of all shares at each level, (n,) -> (n,)."""
        full = np.searchsorted(levels, level, side="right")
        total: FloatVector = filled[full] + np.where(full < len(levels), level, 0.0) * rate[full]
        return total

    # The level at which the shares sum to the budget.
    before = int(np.searchsorted(reached(levels), budget, side="left"))
    level = levels[-1] if before >= len(levels) else (budget - filled[before]) / rate[before]
    count = np.minimum(caps, np.floor(weights * level * (1 + _NOISE) + 1)).astype(np.int64)  # (m,)
    claimant = np.repeat(np.arange(len(caps)), count)  # (u,)
    number = np.arange(len(claimant)) - np.repeat(np.cumsum(count) - count, count) + 1  # (u,), k of each unit
    midpoint = (number - 0.5) / weights[claimant]
    passed = reached((number - 1) / weights[claimant])
    release = np.floor(passed + _NOISE * np.maximum(1.0, passed)).astype(np.int64) + 1
    return claimant, midpoint, release
