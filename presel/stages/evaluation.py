"""Stage `evaluation`: a model's generated answers on the benchmarks, and their scores."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pandas as pd

from presel.benchmarks import Benchmarks
from presel.data.llava import Record
from presel.data.prompts import Turn
from presel.files import read_json, write_json, write_table
from presel.metrics import METRICS
from presel.models.lvlm import Lvlm
from presel.models.tune import Hardware
from presel.shards import chunks, table_in_shards
from presel.stages.pool import PoolStage
from presel.stages.tuning import TuningStage
from presel.store import Stage, Store

Scores = dict[str, float]


class Question(NamedTuple):
    """One answer to be given: a record's conversation up to, and without, the answer of one turn.

    Earlier turns hold the reference answers, so that one slip is not counted twice.
    """

    record: Record
    turn: int

    @property
    def benchmark(self) -> str:
        """The benchmark it belongs to."""
        return self.record.task

    @property
    def prompt(self) -> Sequence[Turn]:
        """The turns that the model sees."""
        return self.record.conversations[: self.turn]

    @property
    def reference(self) -> str:
        """The right answer."""
        return self.record.conversations[self.turn]["value"]


def questions(records: Sequence[Record]) -> list[Question]:
    """Every answer that a benchmark's records ask for, prompts of like length side by side."""
    found = [
        Question(record, turn)
        for record in records
        for turn, said in enumerate(record.conversations)
        if said["from"] == "gpt"
    ]
    return sorted(found, key=lambda question: sum(len(turn["value"]) for turn in question.prompt))


@dataclass(frozen=True)
class EvaluationStage(Stage[Scores]):
    """Greedy answers of one model; leaves `predictions.parquet` and `scores.json`.

    Attributes:
        benchmarks: The checked images of the benchmarks.
        lvlm: The base model.
        tuned: The adapter to put on it; None evaluates the base itself.
        hardware: Where.
        who: The model's name, for the stage line.
    """

    name: ClassVar[str] = "evaluation"

    benchmarks: PoolStage
    lvlm: Lvlm
    tuned: TuningStage | None
    hardware: Hardware
    who: str = field(compare=False)

    @property
    def label(self) -> str:
        """Says whose evaluation this is."""
        return f"{self.name} ({self.who})"

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Answers and scores."""
        from presel.models.conversations import ConversationEncoder, Example
        from presel.models.generation import generate_answers
        from presel.models.hardware import device_for

        source = _benchmarks(self.benchmarks)
        files = source.files(store)
        encoder = ConversationEncoder(self.lvlm)
        adapter = store.load(self.tuned) if self.tuned else None
        model = self.lvlm.load_model(adapter).to(device_for(self.hardware.accelerator))

        def answer(asked: Sequence[Question]) -> pd.DataFrame:
            answers = []
            for batch in chunks(asked, source.batch_size):
                examples = [Example(files.images / item.record.image, item.prompt) for item in batch]
                answers += generate_answers(model, encoder, examples, source.max_new_tokens)
            columns = [(item.record.id, item.turn, item.benchmark, item.reference) for item in asked]
            table = pd.DataFrame(columns, columns=["id", "turn", "benchmark", "reference"])
            return table.assign(answer=answers)

        predictions = table_in_shards(folder / "shards", questions(files.records()), "answering", answer)
        scores, scored = score(predictions, source)
        write_table(folder / "predictions.parquet", scored)
        write_json(folder / "scores.json", scores)
        return {"answers": len(predictions), "mean": sum(scores.values()) / len(scores)}

    def load(self, folder: Path) -> Scores:
        """Score by benchmark, 0 to 1."""
        scores: Scores = read_json(folder / "scores.json")
        return scores


@dataclass(frozen=True)
class MostFrequentStage(Stage[Scores]):
    """What the best constant reaches: each benchmark answered by its own most frequent answer."""

    name: ClassVar[str] = "most_frequent"

    benchmarks: PoolStage

    def compute(self, store: Store, folder: Path) -> None:
        """Answers every turn by the answer most frequent at that turn."""
        source = _benchmarks(self.benchmarks)
        asked = questions(source.files(store).records())
        columns = [(item.turn, item.benchmark, item.reference) for item in asked]
        table = pd.DataFrame(columns, columns=["turn", "benchmark", "reference"])
        common = table.groupby(["benchmark", "turn"])["reference"].transform(
            lambda answers: Counter(sorted(answers)).most_common(1)[0][0]
        )
        scores, _ = score(table.assign(answer=common), source)
        write_json(folder / "scores.json", scores)

    def load(self, folder: Path) -> Scores:
        """Score by benchmark, 0 to 1."""
        scores: Scores = read_json(folder / "scores.json")
        return scores


def score(predictions: pd.DataFrame, benchmarks: Benchmarks) -> tuple[Scores, pd.DataFrame]:
    """Scores predictions.

    Args:
        predictions: benchmark, answer, reference; one row an answer.
        benchmarks: Says which metric scores which benchmark.

    Returns:
        Mean score by benchmark, and the predictions with a column `score`.
    """
    parts = []
    for name, rows in predictions.groupby("benchmark", sort=True):
        metric = METRICS[benchmarks.metric_of(str(name))]
        parts.append(rows.assign(score=metric(rows["answer"].tolist(), rows["reference"].tolist())))
    scored = pd.concat(parts)
    means = scored.groupby("benchmark", sort=True)["score"].mean()
    return {str(name): round(float(mean), 6) for name, mean in means.items()}, scored


def _benchmarks(stage: PoolStage) -> Benchmarks:
    if not isinstance(stage.source, Benchmarks):
        raise TypeError("an evaluation needs a pool stage whose source is a set of benchmarks")
    return stage.source
