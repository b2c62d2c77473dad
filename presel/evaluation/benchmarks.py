"""Benchmarks from held-out records: greedy generation, then a metric; one benchmark per task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import Field

from presel.component import component
from presel.data.llava import LeftOut
from presel.data.sources import DrawnScenes, LlavaRecords, Source
from presel.evaluation.metrics import METRICS


@dataclass(frozen=True)
class Scoring:
    """How answers are generated and scored; see `Benchmarks` for the fields."""

    metric: str
    metrics: Mapping[str, str]
    max_new_tokens: int
    batch_size: int

    def metric_of(self, benchmark: str) -> str:
        """The name of a benchmark's metric."""
        return self.metrics.get(benchmark, self.metric)


@component
class Benchmarks(Source):
    """A source of held-out records, and how they are scored.

    Attributes:
        metric: Metric of all benchmarks not listed in `metrics`.
        metrics: Metric by benchmark; keys of `presel.evaluation.metrics.METRICS`.
        max_new_tokens: Maximum length of an answer in tokens.
        batch_size: Answers generated at once.
    """

    group: ClassVar[str] = "evaluation"

    # Not part of the images' key, but, as `scoring`, of the evaluation's: also the batch size, since padding
    # changes the last bits of the logits, and thereby some answers.
    metric: str = field(default="exact_match", compare=False)
    metrics: dict[str, str] | None = field(default=None, compare=False)
    max_new_tokens: Annotated[int, Field(gt=0)] = field(default=64, compare=False)
    batch_size: Annotated[int, Field(gt=0)] = field(default=64, compare=False)
    # Without some of its images a benchmark would not be comparable.
    max_rejected_share: Annotated[float, Field(ge=0, le=1)] = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        """Checks the names of the metrics."""
        for name in [self.metric, *(self.metrics or {}).values()]:
            if name not in METRICS:
                raise ValueError(f"unknown metric {name!r}; choose one of {', '.join(METRICS)}")

    @property
    def scoring(self) -> Scoring:
        """How the records are scored."""
        return Scoring(self.metric, self.metrics or {}, self.max_new_tokens, self.batch_size)


@component
class LlavaBenchmarks(Benchmarks, LlavaRecords):
    """Benchmarks in a LLaVA-format file, whose records may have a list `references`."""

    with_references: ClassVar[bool] = True

    text_only: LeftOut = "refuse"


@component
class DigitBenchmarks(Benchmarks, DrawnScenes):
    """The built-in benchmarks."""

    metrics: dict[str, str] | None = field(
        default_factory=lambda: {"box": "box_accuracy", "caption": "cider", "describe": "cider"},
        compare=False,
    )
    max_new_tokens: Annotated[int, Field(gt=0)] = field(default=96, compare=False)
