"""Splits the budget over tasks, and a task's budget over its clusters (eq. 6)."""

import math
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from presel.selection.apportionment import SMALLEST, apportion
from presel.selection.arrays import FloatVector, IntVector, check_all, check_choice, check_whole

TaskMode: TypeAlias = Literal["exact", "paper", "released_llava", "released_vision_flan"]
ClusterMode: TypeAlias = Literal["exact", "paper", "released"]


def allocate_tasks(
    weights: npt.ArrayLike, sizes: npt.ArrayLike, budget: int, mode: TaskMode = "exact"
) -> IntVector:
    """Splits a budget of images over tasks.

    Modes:

    - `exact`: Shares proportional to the weights, capped at the sizes; the sum is exactly `min(budget,
      sizes.sum())`, and no task's share shrinks when the budget grows. The rule is
      `presel.selection.apportionment.apportion`. The weights may have any positive sum. Tasks of weight 0
      receive images, in proportion to their sizes, only once all others are full.
    - `paper`: floor(w * budget), the most that eq. 6 can reach when summed over a task's clusters. The sum is
      below the budget and there is no cap. Eq. 6 itself rounds once, per cluster: for it pass the real number
      `w * budget` to `allocate_clusters(..., mode="paper")`.
    - `released_llava`: The released code for LLaVA-1.5: floor(w * budget), the whole remainder to the task of
      largest weight (the first of several), no cap.
    - `released_vision_flan`: The released code for Vision-FLAN: floor(w * budget) capped at the size; the
      remainder one each by largest fraction over tasks below their cap; what the caps cut off round-robin, in
      the order of the tasks, over tasks below their cap.

    Args:
        weights: The tasks' weights w(T) (eq. 5), shape (M,); must sum to 1 in all modes but `exact`.
        sizes: The tasks' available images, shape (M,).
        budget: Total number of images to choose, at least 0.
        mode: One of the above.

    Returns:
        Images per task, shape (M,).

    Raises:
        ValueError: If a weight is negative or not finite, all weights are 0, a size or the budget is not a
            whole number of at least 0, the lengths differ, there is no task, or the mode is unknown.
    """
    check_choice(mode, "mode", TaskMode)
    caps = _whole_numbers(sizes, "sizes")  # (M,)
    shares = _weights(weights)  # (M,)
    if len(shares) != len(caps):
        raise ValueError(f"weights has {len(shares)} values and sizes {len(caps)}; both need one per task")
    total = _whole_budget(budget)
    if mode == "exact":
        return apportion(shares, caps, total)
    weight_sum = math.fsum(shares.tolist())
    if abs(weight_sum - 1) > 1e-6:
        raise ValueError(
            f"the weights sum to {weight_sum:g}; mode '{mode}' is defined for weights that sum to 1, "
            "as presel.importance.task_weights returns them"
        )
    ideal = shares * total  # (M,)
    floors = np.floor(ideal).astype(np.int64)
    if mode == "paper":
        return floors
    if mode == "released_llava":
        floors[np.argmax(shares)] += total - floors.sum()
        return floors
    return _released_vision_flan(ideal, floors, caps, total)


def fill_tasks(weights: npt.ArrayLike, bought: npt.ArrayLike, sizes: npt.ArrayLike, budget: int) -> IntVector:
    """Splits a budget over tasks of which some images are bought already, so that these count in the split.

    The ideal numbers are `level · weight`, bounded below by the images already bought and above by the task's
    size, with the level at which they sum to the budget (water-filling). In `allocate_tasks` the weights
    divide the rest of the budget instead, whatever is bought.

    Args:
        weights: The tasks' weights, with any positive sum, shape (M,).
        bought: Images of each task that are bought already, shape (M,).
        sizes: All images of each task, those included, shape (M,).
        budget: Total number of images, those included.

    Returns:
        Images to add to each task, shape (M,), rounded as in `allocate_tasks`; the sum is exactly
        `min(budget, sizes.sum()) - bought.sum()`. Tasks of weight 0 get images only once all others are full.
        If nothing is bought, the result is that of `allocate_tasks`. Unlike there, a task can lose an image
        when the budget grows by one, though rarely.

    Raises:
        ValueError: As in `allocate_tasks`, or if more images of a task are bought than it has, or the budget
            is below what is bought.
    """
    shares, least, most = _weights(weights), _whole_numbers(bought, "bought"), _whole_numbers(sizes, "sizes")
    if not len(shares) == len(least) == len(most):
        raise ValueError(
            f"there are {len(shares)} weights, {len(least)} values of bought and {len(most)} sizes; each "
            "needs one per task"
        )
    check_all(least <= most, least, "bought", "no more images of a task are bought than it has")
    total = _whole_budget(budget)
    if not least.any():
        return apportion(shares, most, total)
    if total < least.sum():
        raise ValueError(f"the budget is {total}, below the {least.sum()} images that are bought already")
    positive = shares > 0
    # Relative to the largest and not too small, so that every level is finite.
    shares = np.where(positive, np.maximum(shares / shares.max(), SMALLEST), 0)
    w, low, high = shares[positive], least[positive], most[positive]
    # The sum is linear in the level between the levels at which a task leaves one bound or reaches the other.
    levels = np.unique(np.concatenate([low / w, high / w]))  # (l,), at most 2 M
    sums = np.clip(levels[:, None] * w, low, high).sum(axis=1)  # (l,)
    level = np.interp(total - least[~positive].sum(), sums, levels)
    ideal = np.clip(level * shares, least, most)  # (M,)
    return apportion(ideal - least, most - least, total - int(least.sum()))


def allocate_clusters(
    available: npt.ArrayLike,
    budget: float,
    mode: ClusterMode = "exact",
    totals: npt.ArrayLike | None = None,
    *,
    size_exponent: float = 1.0,
) -> IntVector:
    """Splits a task's budget over its clusters.

    Modes:

    - `exact`: Shares proportional to `available ** size_exponent`, by the rule of `allocate_tasks`' exact
      mode: the sum is `min(budget, available.sum())`, no share exceeds `available`, and none shrinks when the
      budget grows.
    - `paper`: Eq. 6, floor(|A_c| / |T| * budget), with |A_c| the cluster's full size if `totals` is given and
      `available` otherwise. There is no cap, and the sum is slightly below the budget.
    - `released`: The released code: round(available / sum * budget), halves to even, capped at `available`;
      if the sum is too low, one more each over clusters below their cap by descending total size; if too
      high, one less each by ascending total size. One round only, as released: the caller fills a remaining
      gap with images drawn at random from the whole pool, as the released code does.

    Args:
        available: Images of each cluster outside the reference set, shape (C,).
        budget: The task's budget, a whole number; in mode `paper` also a real number, w(T) * |D_S|, which
            makes eq. 6 exact.
        mode: One of the above.
        totals: The clusters' full sizes, reference images included, shape (C,); None: as `available`.
        size_exponent: Of mode `exact`, at least 0: 1 as in eq. 6; below 1 small clusters get more than their
            share (Mahajan et al., 2018, sample by the square root of frequency); 0 for equal shares.

    Returns:
        Images per cluster, shape (C,).

    Raises:
        ValueError: If a count is not a whole number of at least 0, the lengths differ, a total is below its
            `available`, there is no cluster, the budget is negative, not finite or not whole where it has to
            be, the mode is unknown, or the exponent is below 0 or set in another mode than `exact`.
    """
    check_choice(mode, "mode", ClusterMode)
    if not (math.isfinite(size_exponent) and size_exponent >= 0) or (mode != "exact" and size_exponent != 1):
        raise ValueError(
            f"size_exponent is {size_exponent} in mode '{mode}'; it must be finite and at least 0, and only "
            "mode 'exact' has another than 1"
        )
    caps = _whole_numbers(available, "available")  # (C,)
    full = caps if totals is None else _whole_numbers(totals, "totals")
    if len(full) != len(caps):
        raise ValueError(
            f"available has {len(caps)} values and totals {len(full)}; both need one per cluster"
        )
    if (full < caps).any():
        first = int(np.argmax(full < caps))
        raise ValueError(
            f"cluster {first} has {caps[first]} available images, more than its total of {full[first]}"
        )
    if mode == "paper":
        return _floor_of_equation_6(full, budget)
    total = _whole_budget(budget)
    if not caps.any():
        return np.zeros_like(caps)
    if mode == "exact":
        return apportion(caps.astype(np.float64) ** size_exponent, caps, total)
    return _released_clusters(caps, full, total)


def _released_vision_flan(ideal: FloatVector, floors: IntVector, caps: IntVector, budget: int) -> IntVector:
    allocation = np.minimum(floors, caps)
    remainder = budget - int(floors.sum())
    for task in np.argsort(-(ideal - floors), kind="stable"):
        if remainder > 0 and allocation[task] < caps[task]:
            allocation[task] += 1
            remainder -= 1
    surplus = min(budget, int(caps.sum())) - int(allocation.sum())
    while surplus > 0:
        with_room = np.flatnonzero(allocation < caps)[:surplus]
        allocation[with_room] += 1
        surplus -= len(with_room)
    return allocation


def _released_clusters(caps: IntVector, full: IntVector, budget: int) -> IntVector:
    # Python's round() and the released order of operations, not np.round: x.5 must round the same way.
    task_size = int(caps.sum())
    rounded = [round(cap / task_size * budget) for cap in caps.tolist()]
    allocation = np.minimum(np.array(rounded, dtype=np.int64), caps)
    difference = budget - int(allocation.sum())
    order = np.argsort(-full if difference > 0 else full, kind="stable")
    changeable = allocation < caps if difference > 0 else allocation > 0
    order = order[changeable[order]]  # (C or fewer,)
    allocation[order[: abs(difference)]] += np.sign(difference)
    return allocation


def _floor_of_equation_6(sizes: IntVector, budget: float) -> IntVector:
    if not (math.isfinite(budget) and budget >= 0):
        raise ValueError(f"the budget is {budget}; it must be finite and at least 0")
    task_size = int(sizes.sum())
    if not task_size:
        return np.zeros_like(sizes)
    if float(budget).is_integer():
        # Integers give the exact floor: 29 / 100 * 100 is 28.999… in floating point.
        whole = int(budget)
        return np.array([size * whole // task_size for size in sizes.tolist()], dtype=np.int64)
    return np.floor(budget * sizes / task_size).astype(np.int64)


def _weights(values: npt.ArrayLike) -> FloatVector:
    weights = np.asarray(values, dtype=np.float64)
    if weights.ndim != 1 or not len(weights):
        raise ValueError(f"weights has shape {weights.shape}; one weight per task is needed")
    good = np.isfinite(weights) & (weights >= 0)
    check_all(good, weights, "weights", "a weight must be finite and at least 0")
    if not weights.any():
        raise ValueError("all weights are 0; at least one task needs a weight above 0")
    return weights


def _whole_numbers(values: npt.ArrayLike, name: str) -> IntVector:
    numbers = np.asarray(values)
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"{name} has shape {numbers.shape}; a non-empty vector of image counts is needed")
    good = (numbers >= 0) & (numbers == np.floor(numbers)) & np.isfinite(numbers)
    check_all(good, numbers, name, "it must be a whole number of at least 0")
    return numbers.astype(np.int64)


def _whole_budget(budget: float) -> int:
    check_whole(budget, "the budget", least=0)
    return int(budget)
