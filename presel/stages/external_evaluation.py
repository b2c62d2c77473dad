"""Stage `evaluation` by another program, on the merged model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from presel.errors import PreselError
from presel.evaluation.external import ExternalBenchmarks
from presel.evaluation.scores import mean_score
from presel.stages.merged import MergedStage
from presel.stages.results import ScoresStage
from presel.storage.store import Store

_LOG = "log.txt"


@dataclass(frozen=True, kw_only=True)
class ExternalEvaluationStage(ScoresStage):
    """Scores by another program; leaves its `results/`, its `log.txt`, and `scores.json`.

    Results that are there already, from an interrupted run or from another machine, are read instead.

    Attributes:
        model: The model to evaluate.
        benchmarks: The program.
        model_name: The model's name, for the label.
    """

    name: ClassVar[str] = "external_evaluation"

    model: MergedStage
    benchmarks: ExternalBenchmarks
    model_name: str = field(compare=False)

    @property
    def label(self) -> str:
        """Names the model."""
        return f"{self.name} ({self.model_name})"

    def check(self, store: Store) -> None:
        """Checks the program, unless there is a result."""
        if not store.has(self):
            self._program().check()

    def check_data(self, store: Store) -> None:
        """Checks a result against the limit of failures, which another run may have set higher.

        Raises:
            PreselError: If there are more.
        """
        if store.has(self) and (failure := self.benchmarks.hidden_failure(store.folder(self) / _LOG)):
            raise PreselError(failure)

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Runs the program, unless its results are there.

        Raises:
            PreselError: If it fails, if only for some questions, or leaves none.
        """
        results, log = folder / "results", folder / _LOG
        results.mkdir(exist_ok=True)
        scores = self.benchmarks.scores(results)
        if scores is None:
            self._program().run(store.load(self.model), results, log)
            scores = self.benchmarks.scores(results)
        if scores is None:
            raise PreselError(f"{self.label}: the program left no results under {results}; see {log}")
        if failure := self.benchmarks.hidden_failure(log):
            raise PreselError(failure)
        self.write(folder, scores)
        return {"mean": mean_score(scores)}

    def _program(self) -> ExternalBenchmarks:
        return self.benchmarks.for_family(self.model.tuned.lvlm.family)
