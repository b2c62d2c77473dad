"""Use from Python: select images without a configuration, or compose and run one in this process."""

import logging
import multiprocessing
import sys
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from presel.errors import PreselError
from presel.selection import (
    FeatureRows,
    allocate_tasks,
    cluster,
    id_order,
    number_of_clusters,
    select_from_task,
)
from presel.selection.arrays import IntVector, check_whole
from presel.selection.threads import for_each_task

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from presel.runs import RunRecord

_log = logging.getLogger(__name__)

Image = TypeVar("Image", bound=Hashable)


def select(
    images: Sequence[Image],
    tasks: Sequence[Hashable],
    *,
    weights: Mapping[Any, float] | None = None,
    features: npt.ArrayLike | None = None,
    budget: int,
    k: int = 5,
    seed: int = 0,
) -> list[Image]:
    """Selects the images of a pool whose instructions are most informative.

    The budget is split among tasks by weight (eq. 5 and 6), each task is clustered by k-means into one
    cluster per hundred images, and every cluster gives its most central images (eq. 7). Rounding follows mode
    `exact`, see `presel.selection`. The selection is invariant to the order and the names of the images, but
    for ties between identical images.

    Args:
        images: Ids or paths, n of them, all different.
        tasks: The task of every image, length n.
        weights: Weight of every task, with any positive sum. None: in proportion to the tasks' sizes, the
            neutral choice before any instruction was seen; with a reference set, use
            `presel.importance.task_weights`.
        features: One vector per image, shape (n, d), float32 or float16, of any norms; a memory map stays on
            disk. None: `images` are paths, and the built-in encoder encodes them; it is made for the built-in
            digit scenes, not for photographs, and a warning says so.
        budget: Number of images to select, from 0 to n.
        k: Number of neighbors in eq. 7.
        seed: Seed of every random draw.

    Returns:
        The selected images, exactly `budget`: tasks by name, in a task clusters by label, in a cluster the
        most central image first.

    Raises:
        ValueError: If there is no image, one occurs twice, the lengths differ, a feature vector has a NaN or
            is zero (the image is named), the budget is no whole number from 0 to n, `k` is below 1, a task
            has no weight or a weight no images, or a weight is no number, negative or not finite.
    """
    # Lists, because a pandas Series would be indexed by label.
    images, tasks = list(images), list(tasks)
    n = len(images)
    if not n:
        raise ValueError("there is no image to choose from")
    if len(tasks) != n:
        raise ValueError(f"there are {len(tasks)} tasks for {n} images; one per image is needed")
    check_whole(budget, "the budget", least=0)
    if budget > n:
        raise ValueError(f"the budget is {budget}; there are only {n} images")
    check_whole(k, "k")
    order = id_order(images, n)
    vectors = _features(images, features)
    if vectors.ndim != 2 or len(vectors) != n:
        raise ValueError(
            f"features have shape {vectors.shape} for {n} images; one vector per image is needed"
        )
    sizes = Counter(tasks)
    names = sorted(sizes, key=lambda task: (str(task), repr(task)))
    shares = _weights(weights, sizes, names)
    budgets = allocate_tasks(shares, [sizes[name] for name in names], int(budget))
    number = {name: place for place, name in enumerate(names)}
    task_of = np.array([number[task] for task in tasks])
    by_task = order[np.argsort(task_of[order], kind="stable")]
    work = [
        # The features of all tasks are checked before the first task is clustered.
        (FeatureRows(vectors, index=members, normalize=True, ids=images), members, task_budget)
        for members, task_budget in zip(
            np.split(by_task, np.cumsum([sizes[name] for name in names])[:-1]), budgets.tolist(), strict=True
        )
    ]

    def select_task(task: tuple[FeatureRows, IntVector, int]) -> list[Image]:
        rows, members, task_budget = task
        labels, _ = cluster(rows, number_of_clusters(len(rows)), seed, canonical_order=True)
        picks = select_from_task(rows, labels, np.ones(len(members), dtype=np.bool_), task_budget, k=k)
        return [images[row] for row in members[picks]]

    chosen = for_each_task(select_task, [task for task in work if task[2]])
    return [image for part in chosen for image in part]


def compose(overrides: Sequence[str] = ()) -> "DictConfig":
    """Composes the configuration that `presel run` would run on with these overrides.

    Args:
        overrides: As on the command line: `["strategy=random", "budget=0.05"]`. Your own options are found by
            `hydra.searchpath=[file:///FOLDER]`.

    Returns:
        The configuration, without Hydra's own; interpolations resolve when they are read.

    Raises:
        PreselError: If the configuration is invalid.
    """
    from presel.settings.compose import composed

    return composed(overrides)


def run(overrides: Sequence[str] = ()) -> "RunRecord":
    """Does in this process what `presel run` does: the same results in the same store and run folder.

    Arguments, logging and Hydra of the calling program stay as they are.

    Args:
        overrides: As on the command line, see `compose`; a sweep is a loop over calls.

    Returns:
        The record of the finished run.

    Raises:
        PreselError: If the configuration or the data is invalid, or a script calls it outside
            `if __name__ == "__main__":`, so that worker processes, which import the script, run it again.
        Paused: If instructions are awaited from people or a batch service; call again later.
    """
    # What multiprocessing itself looks at to refuse a start of processes in one that is still starting.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise PreselError(
            "a worker process imported the script that started it, which calls presel.run there again; move "
            "what the script does under `if __name__ == '__main__':`"
        )
    from presel.commands.execution import execute
    from presel.console import run_log, show_messages
    from presel.instructions.secrets import check_environment
    from presel.settings.compose import composed, isolated_hydra, without_hydra
    from presel.settings.saved import save_configuration
    from presel.storage.run_folder import RUN_FILE

    config = composed(overrides, with_hydra=True)
    # The environment is the caller's own.
    check_environment(config.hydra.job.env_set, overrides=())
    folder = Path(config.hydra.run.dir).absolute()
    config = without_hydra(config)
    settings = [one for one in overrides if not one.lstrip("+~").startswith("hydra")]
    if not (folder / RUN_FILE).exists():
        save_configuration(folder, config)
    if not logging.getLogger("presel").hasHandlers():
        show_messages()
    with isolated_hydra(), run_log(folder), _unchanged_search_path():
        return execute(config, folder, settings, settings)


@contextmanager
def _unchanged_search_path() -> Iterator[None]:
    """Restores `sys.path`, to which `build` adds the working directory."""
    before = sys.path[:]
    try:
        yield
    finally:
        sys.path[:] = before


def _features(images: Sequence[Any], features: npt.ArrayLike | None) -> npt.NDArray[Any]:
    if features is not None:
        return features if isinstance(features, np.ndarray) else np.asarray(features)
    from presel.models.encoder import encode_images
    from presel.models.model_files import digits_warning

    _log.warning(digits_warning(["the built-in encoder"], "pass features of another encoder"))
    return np.asarray(encode_images([Path(image) for image in images]))


def _weights(
    weights: Mapping[Any, float] | None, sizes: Mapping[Any, int], names: Sequence[Any]
) -> list[float]:
    if weights is None:
        return [float(sizes[name]) for name in names]
    missing = [name for name in names if name not in weights]
    if missing:
        raise ValueError(f"task {missing[0]!r} has images and no weight; give every task one")
    unknown = [name for name in weights if name not in sizes]
    if unknown:
        raise ValueError(
            f"task {unknown[0]!r} has a weight and no images, so it has no features; leave it out"
        )
    bad = [name for name in names if not _is_weight(weights[name])]
    if bad:
        raise ValueError(
            f"the weight of task {bad[0]!r} is {weights[bad[0]]!r}; it must be a finite number of at least 0"
        )
    return [float(weights[name]) for name in names]


def _is_weight(value: float) -> bool:
    # A whole number may be too large for a float.
    return isinstance(value, Real) and 0 <= value <= sys.float_info.max
