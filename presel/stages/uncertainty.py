"""Stage `uncertainty`: how unsure the reference model is about images that it was not tuned on."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd

from presel.data.prompts import IMAGE_TOKEN, Turn
from presel.errors import PreselError
from presel.models.lvlm import Lvlm
from presel.stages.inference import InferenceStage
from presel.stages.instructions import InstructionsStage
from presel.stages.results import TableStage
from presel.stages.token_batches import encoded_batches, shards_by_length
from presel.stages.tuning import TuningStage
from presel.storage.shards import Batches, TableShards
from presel.storage.store import Store

if TYPE_CHECKING:
    from presel.models.conversations import ConversationEncoder

_log = logging.getLogger(__name__)


class Probe(NamedTuple):
    """A question of the reference set, asked about another record of the pool.

    Attributes:
        id: The record's id.
        images: Paths of the images that the question is about, relative to the pool's folder.
        question: Text of the question, with an image token for each of them.
        length: Length of the prompt in tokens, with the images' own.
    """

    id: str
    images: list[str]
    question: str
    length: int


@dataclass(frozen=True, kw_only=True)
class UncertaintyStage(TableStage, InferenceStage[pd.DataFrame]):
    """Entropy of the answers to questions of the reference set, for each image outside it.

    Only questions that are bought already are asked: those about other images of the same task, or of all
    tasks if the task's own have none; of a record with several images, about as many as the question names,
    the first ones. Questions that are too long for the model beside their own images are left out; so are
    those that are too long beside the images that they would be asked about, and these are counted.

    An image's uncertainty is the mean entropy of the distribution of the first answer token. It says little
    where that token is the same whatever the answer, as for numbers with Llama 2's tokenizer, which begins
    them by a token for the space.

    Leaves `uncertainty.parquet`: id, uncertainty (in nats), without the reference set and the images that
    leave no room for a question.

    Attributes:
        instructions: Those of the reference set.
        model: The model that is asked, tuned on them.
        questions: Number of different questions per image, fewer if its task has fewer.
        seed: Seed of the choice of questions, which does not depend on the order of the pool's rows.
    """

    name: ClassVar[str] = "uncertainty"

    instructions: InstructionsStage
    model: TuningStage
    questions: int
    seed: int

    @property
    def lvlm(self) -> Lvlm:
        """The model before any tuning."""
        return self.model.lvlm

    def probes(self, store: Store, encoder: "ConversationEncoder") -> tuple[list[Probe], int]:
        """The questions to ask, by task and id of the image, and how many its own image leaves no room for.

        Raises:
            PreselError: If all questions are too long for the model, or about more images than a record has.
        """
        pool = store.load(self.instructions.pool)
        pool["images"] = self.instructions.pool.all_images(store).groupby("record")["image"].agg(list)
        by_task = self._questions(store, dict(zip(pool["id"], pool["task"], strict=True)), encoder)
        of_all = set().union(*by_task.values())
        if not of_all:
            raise self._all_too_long()
        # Another stream than those of the reference set and its halves.
        generator = np.random.default_rng([self.seed, 2])
        free = pool[~pool["id"].isin(store.load(self.instructions.chosen)["id"])]
        drawn: list[tuple[str, list[str], str]] = []
        for task, records in free.sort_values("id").groupby("task", sort=True):
            fitting = cache(partial(_fitting, by_task.get(str(task), set()), of_all))
            for name, images in zip(records["id"], records["images"], strict=True):
                questions = fitting(len(images))
                if not questions:
                    raise PreselError(
                        f"record '{name}': the questions of the reference set are all about more than its "
                        f"{len(images)} images; raise reference.share"
                    )
                count = min(self.questions, len(questions))
                for number in generator.choice(len(questions), count, replace=False):
                    text = questions[number]
                    drawn.append((name, images[: text.count(IMAGE_TOKEN)], text))
        probes = self._measured(drawn, self.instructions.pool.files(store).images, encoder)
        return probes, len(drawn) - len(probes)

    def _measured(
        self, drawn: Sequence[tuple[str, list[str], str]], folder: Path, encoder: "ConversationEncoder"
    ) -> list[Probe]:
        """The questions drawn for records that fit into a prompt with the record's images."""
        probes = []
        for name, images, text in drawn:
            length = encoder.length(_turns(text), [folder / image for image in images])
            if length <= self.lvlm.max_length:
                probes.append(Probe(name, images, text, length))
        if not probes:
            raise self._all_too_long()
        if too_long := len(drawn) - len(probes):
            _log.info(
                f"  {too_long} of {len(drawn)} questions are longer than lvlm.max_length="
                f"{self.lvlm.max_length} tokens with their image; they are not asked"
            )
        return probes

    def shards(self, store: Store, folder: Path) -> TableShards[int]:
        """The probes, longest first."""
        from presel.models.conversations import ConversationEncoder, Example
        from presel.models.decoding import first_token_entropies, prompt_batch

        lvlm = self.lvlm
        encoder = ConversationEncoder(lvlm)
        images = self.instructions.pool.files(store).images
        probes, too_long = self.probes(store, encoder)
        examples = [
            Example([images / image for image in probe.images], _turns(probe.question)) for probe in probes
        ]

        def ask(batches: Batches[int]) -> Iterator[pd.DataFrame]:
            model = lvlm.load_for_inference(self.runtime.hardware, store.load(self.model))
            encode = partial(prompt_batch, encoder)
            for rows, batch in encoded_batches(batches, examples, encode, self.runtime.workers):
                entropies = first_token_entropies(model, batch).double().numpy()
                yield pd.DataFrame({"id": [probes[row].id for row in rows], "uncertainty": entropies})

        return shards_by_length(
            TableShards[int],
            folder,
            [probe.length for probe in probes],
            self.runtime.batch_tokens,
            label="asking questions",
            name=lambda row: probes[row].id,
            compute=ask,
            measured={"too_long": too_long},
        )

    def join(self, store: Store, folder: Path, shards: TableShards[int]) -> dict[str, Any]:
        """Averages over the questions about each image.

        Raises:
            PreselError: If an entropy is not a number.
        """
        asked = shards.joined()
        if (broken := ~np.isfinite(asked["uncertainty"])).any():
            raise PreselError(
                f"image '{asked['id'][broken].iloc[0]}': the entropy of the model's answer is not a number "
                f"({broken.sum()} of {len(asked)} answers); compute more precisely (lvlm.dtype=float32, or "
                "bfloat16 instead of float16), or lower tune.lr"
            )
        table = asked.groupby("id", sort=True)["uncertainty"].mean().reset_index()
        self.write(folder, table)
        return {"images": len(table), "questions": len(asked), **shards.measured}

    def _questions(
        self, store: Store, tasks: dict[str, str], encoder: "ConversationEncoder"
    ) -> dict[str, set[str]]:
        """Each task's different questions, those that show the image and have room beside their own."""
        folder = self.instructions.pool.files(store).images
        questions: dict[str, set[str]] = defaultdict(set)
        for record in store.load(self.instructions):
            text = next(turn["value"] for turn in record.conversations if IMAGE_TOKEN in turn["value"])
            images = record.paths(folder)[: text.count(IMAGE_TOKEN)]
            if encoder.length(_turns(text), images) <= self.lvlm.max_length:
                questions[tasks[record.id]].add(text)
        return dict(questions)

    def _all_too_long(self) -> PreselError:
        return PreselError(
            "all questions of the reference set are longer than lvlm.max_length="
            f"{self.lvlm.max_length} tokens; raise it"
        )


def _fitting(own: Set[str], of_all: Set[str], n_images: int) -> list[str]:
    """A task's questions about at most `n_images` images, sorted; those of all tasks if it has none."""
    found = [
        sorted(text for text in questions if text.count(IMAGE_TOKEN) <= n_images)
        for questions in (own, of_all)
    ]
    return found[0] or found[1]


def _turns(question: str) -> list[Turn]:
    return [{"from": "human", "value": question}]
