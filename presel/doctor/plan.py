"""Plans what a run would buy: the number of instructions of each task, and their cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from presel.instructions.provider import Cost
from presel.pipeline import Pipeline
from presel.selection import allocate_tasks
from presel.stages.instructions import InstructionsStage
from presel.stages.reference import reference_size
from presel.stages.rounds import check_rounds
from presel.stages.selection import check_budget, images_in_budget
from presel.storage.stage import Stage


@dataclass(frozen=True)
class Plan:
    """The instructions of a run.

    Attributes:
        reference: Instructions of the reference set, by task; None if the strategy needs none.
        selected: Instructions of the selection, reference set included, by task. The strategy's own split is
            known only after it has run; here it is proportional to the tasks' sizes.
        rounds: Number of rounds in which the strategy buys what the reference set does not hold.
        bought: All instructions, by task: those of the selection, or of the whole pool for strategies that
            read all instructions before they choose.
        estimate: Their cost; None if the provider is free.
        exceeds: The cost limits that the estimate exceeds, as settings with their values.
    """

    reference: Mapping[str, int] | None
    selected: Mapping[str, int]
    rounds: int
    bought: Mapping[str, int]
    estimate: Cost | None
    exceeds: Sequence[str]


def plan_for(pipeline: Pipeline, sizes: Mapping[str, int], steps: Sequence[Stage[Any]]) -> Plan:
    """Plans the purchases of a run from the usable images of each task and the run's stages.

    Raises:
        PreselError: If the budget cannot be met.
    """
    reference = None
    if pipeline.selection.reference:
        share = pipeline.reference_share
        reference = {task: min(size, reference_size(share, size)) for task, size in sizes.items()}
    selected = sizes if pipeline.strategy.whole_pool else _by_size(pipeline, sizes, reference or {})
    reads_all = any(isinstance(step, InstructionsStage) and step.chosen == pipeline.pool for step in steps)
    bought = sizes if reads_all else selected
    wanted = {task: images for task, images in bought.items() if images}
    estimate = pipeline.provider.estimate(wanted)
    exceeds = pipeline.provider.exceeded(estimate) if estimate else []
    return Plan(reference, selected, len(pipeline.rounds) + 1, bought, estimate, exceeds)


def _by_size(pipeline: Pipeline, sizes: Mapping[str, int], reference: Mapping[str, int]) -> Mapping[str, int]:
    budget = images_in_budget(pipeline.budget, sum(sizes.values()))
    paid = sum(reference.values())
    check_budget(pipeline.budget, budget, paid, pipeline.reference_share)
    check_rounds(pipeline.budget, budget - paid, len(pipeline.rounds) + 1)
    free = [size - reference.get(task, 0) for task, size in sizes.items()]
    added = allocate_tasks(list(sizes.values()), free, budget - paid).tolist()
    return {task: reference.get(task, 0) + more for task, more in zip(sizes, added, strict=True)}
