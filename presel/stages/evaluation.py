"""Stage `evaluation`: a model's generated answers on the benchmarks, and their scores."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pandas as pd

from presel.console import progress
from presel.data.prompts import IMAGE_TOKEN, Turn
from presel.data.sources import annotated
from presel.errors import PreselError
from presel.evaluation.benchmarks import Scoring
from presel.evaluation.metrics import METRICS
from presel.evaluation.scores import Scores, mean_score
from presel.models.lvlm import Lvlm
from presel.stages.inference import InferenceStage
from presel.stages.pool import PoolStage
from presel.stages.results import ScoresStage
from presel.stages.tuning import TuningStage
from presel.storage.files import write_table
from presel.storage.shards import Batches, TableShards, chunks
from presel.storage.store import Store

# Number of questions that an error message names for each benchmark.
_NAMED = 5


class Question(NamedTuple):
    """One answer to generate, and its reference.

    Attributes:
        id: Id of the record.
        turn: Number of the answer's turn in the record's conversation, from 0.
        benchmark: The benchmark that the record belongs to.
        reference: The reference answer in the record's conversation.
        references: All reference answers to score against.
        images: Paths of the images that the prompt shows, relative to the benchmarks' folder.
        prompt: The turns before the answer. They hold the reference answers, so that one mistake is not
            counted twice.
    """

    id: str
    turn: int
    benchmark: str
    reference: str
    references: tuple[str, ...]
    images: tuple[str, ...]
    prompt: Sequence[Turn]


def questions(store: Store, benchmarks: PoolStage) -> list[Question]:
    """The answers that usable records ask for after an image was shown, sorted by prompt length."""
    usable = set(store.load(benchmarks)["id"])
    found = []
    for record in annotated(benchmarks.source.files(store)).records():
        for turn, said in enumerate(record.conversations if record.id in usable else []):
            prompt = record.conversations[:turn]
            n_images = sum(earlier["value"].count(IMAGE_TOKEN) for earlier in prompt)
            if said["from"] == "gpt" and n_images:
                answer, images = said["value"], record.images[:n_images]
                references = record.references or (answer,)
                found.append(Question(record.id, turn, record.task, answer, references, images, prompt))
    return sorted(found, key=lambda question: sum(len(turn["value"]) for turn in question.prompt))


def as_table(asked: Sequence[Question]) -> pd.DataFrame:
    """One row per question: id, turn, benchmark, reference, references."""
    return pd.DataFrame([question[:5] for question in asked], columns=Question._fields[:5])


@dataclass(frozen=True, kw_only=True)
class EvaluationStage(ScoresStage, InferenceStage[Scores]):
    """Greedy answers of one model; leaves `predictions.parquet` and `scores.json`.

    Attributes:
        benchmarks: The checked images of the benchmarks.
        scoring: How answers are scored.
        lvlm: The base model.
        tuned: The adapter of the fine-tuned model; None evaluates the base model.
        model_name: The model's name, for the label.
    """

    name: ClassVar[str] = "evaluation"
    version: ClassVar[int] = 4

    benchmarks: PoolStage
    scoring: Scoring
    lvlm: Lvlm
    tuned: TuningStage | None
    model_name: str = field(compare=False)

    @property
    def label(self) -> str:
        """Names the model."""
        return f"{self.name} ({self.model_name})"

    def check_data(self, store: Store) -> None:
        """Checks that all answers can be scored and all questions fit into a prompt.

        A truncated question would be answered and scored like any other.

        Raises:
            PreselError: If `scoring` names an unknown benchmark, a metric cannot parse a reference, or a
                question is too long.
        """
        asked = questions(store, self.benchmarks)
        self._check_scoring(asked)
        if not store.has(self):
            self._check_prompts(asked, self.benchmarks.source.files(store).images)

    def shards(self, store: Store, folder: Path) -> TableShards[Question]:
        """The questions to answer."""
        from presel.models.conversations import ConversationEncoder, Example
        from presel.models.decoding import generate_answers, prompt_batch
        from presel.models.prefetch import prefetched

        images = self.benchmarks.source.files(store).images
        encoder = ConversationEncoder(self.lvlm)
        adapter = store.load(self.tuned) if self.tuned else None

        def answer(batches: Batches[Question]) -> Iterator[pd.DataFrame]:
            model = self.lvlm.load_for_inference(self.runtime.hardware, adapter)
            chosen = [
                [Example([images / image for image in one.images], one.prompt) for one in batch]
                for batch in batches
            ]
            for asked, encoded in zip(
                batches, prefetched(chosen, partial(prompt_batch, encoder), self.runtime.workers), strict=True
            ):
                answers = generate_answers(model, encoder, encoded, self.scoring.max_new_tokens)
                yield as_table(asked).assign(answer=answers)

        return TableShards(
            folder=folder / "shards",
            items=questions(store, self.benchmarks),
            label="answering",
            to_batches=lambda shard: list(chunks(shard, self.scoring.batch_size)),
            compute_batches=answer,
            name=lambda question: question.id,
        )

    def join(self, store: Store, folder: Path, shards: TableShards[Question]) -> dict[str, Any]:
        """Scores the answers."""
        predictions = shards.joined()
        scores, scored = score(predictions, self.scoring)
        write_table(folder / "predictions.parquet", scored)
        self.write(folder, scores)
        return {"answers": len(predictions), "mean": mean_score(scores)}

    def _check_scoring(self, asked: Sequence[Question]) -> None:
        names = sorted({question.benchmark for question in asked})
        if unknown := sorted(self.scoring.metrics.keys() - set(names)):
            raise PreselError(
                f"evaluation.metrics names '{unknown[0]}', which is no benchmark; there are "
                f"{', '.join(names)}"
            )
        for question in asked:
            metric = METRICS[self.scoring.metric_of(question.benchmark)]
            try:
                metric([question.reference], [question.references])
            except ValueError as error:
                raise PreselError(
                    f"evaluation: record '{question.id}' of benchmark '{question.benchmark}': {error}; "
                    "correct it or choose another metric"
                ) from None

    def _check_prompts(self, asked: Sequence[Question], images: Path) -> None:
        from presel.models.conversations import ConversationEncoder

        encoder = ConversationEncoder(self.lvlm)
        too_long: dict[str, list[str]] = defaultdict(list)
        longest = 0
        with progress("measuring questions", len(asked)) as advance:
            for question in asked:
                prompt = encoder.tokens(question.prompt, images=[images / image for image in question.images])
                longest = max(longest, prompt.length)
                if prompt.truncated:
                    too_long[question.benchmark].append(f"'{question.id}'")
                advance(1)
        if not too_long:
            return
        named = "; ".join(
            f"{len(ids)} in benchmark '{name}': {', '.join(ids[:_NAMED])}{' …' if len(ids) > _NAMED else ''}"
            for name, ids in sorted(too_long.items())
        )
        raise PreselError(
            f"evaluation: questions are longer than lvlm.max_length={self.lvlm.max_length} tokens and "
            f"would be cut off ({named}); raise it to {longest}, or remove these records"
        )


@dataclass(frozen=True, kw_only=True)
class MostFrequentStage(ScoresStage):
    """Scores of the constant baseline: the most frequent answer of each benchmark and turn."""

    name: ClassVar[str] = "most_frequent"
    version: ClassVar[int] = 2

    benchmarks: PoolStage
    scoring: Scoring

    def compute(self, store: Store, folder: Path) -> None:
        """Answers every turn by the most frequent answer to that turn."""
        table = as_table(questions(store, self.benchmarks))
        common = table.groupby(["benchmark", "turn"])["reference"].transform(
            lambda answers: Counter(sorted(answers)).most_common(1)[0][0]
        )
        scores, _ = score(table.assign(answer=common), self.scoring)
        self.write(folder, scores)


def score(predictions: pd.DataFrame, scoring: Scoring) -> tuple[Scores, pd.DataFrame]:
    """Scores predictions: a table of benchmark, answer, references, one row per answer.

    Returns:
        Mean score by benchmark, and the predictions with a column `score`.
    """
    parts = []
    for name, rows in predictions.groupby("benchmark", sort=True):
        metric = METRICS[scoring.metric_of(str(name))]
        parts.append(rows.assign(score=metric(rows["answer"].tolist(), rows["references"].tolist())))
    scored = pd.concat(parts)
    means = scored.groupby("benchmark", sort=True)["score"].mean()
    return {str(name): round(float(mean), 6) for name, mean in means.items()}, scored
