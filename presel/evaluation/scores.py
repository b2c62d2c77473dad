"""Scores of a model on the benchmarks, and their summary measures."""

from collections.abc import Collection

from pydantic.dataclasses import dataclass

# Score by benchmark, 0 to 1.
Scores = dict[str, float]


@dataclass(frozen=True)
class ModelScores:
    """The scores of one model, and what they cost.

    Attributes:
        name: The strategy behind the model, or what else was evaluated, such as `base`.
        scores: Score by benchmark, 0 to 1.
        requested: Share of the pool whose instructions were requested, by the ledger; None where
            nothing was chosen.
        seconds: Time of every stage behind the scores, as if nothing had been reused; None for baselines.
    """

    name: str
    scores: Scores
    requested: float | None = None
    seconds: float | None = None


def benchmark_column(name: str, others: Collection[str]) -> str:
    """The column of a benchmark in a table that has others too, one of which may have its name."""
    return f"{name} (benchmark)" if name in others else name


def mean_score(scores: Scores) -> float:
    """Unweighted mean over the benchmarks."""
    return sum(scores.values()) / len(scores)


def relative_score(scores: Scores, full: Scores) -> float | None:
    """Rel.: unweighted mean over benchmarks of score / score of the model tuned on the full pool.

    None where the full model scores 0 on a benchmark, since the ratio does not exist there.
    """
    if not all(full.values()):
        return None
    return sum(scores[name] / full[name] for name in full) / len(full)
