"""A vision-language model on this machine that writes instructions."""

from collections.abc import Iterator, Sequence
from dataclasses import field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from presel.component import component
from presel.console import progress
from presel.data.images import open_image
from presel.data.listing import PoolFiles
from presel.errors import PreselError
from presel.instructions.answers import Answers, Spent
from presel.instructions.generator import Generator
from presel.instructions.pictures import broken_images, read_wanted
from presel.instructions.provider import Revealed, Wanted
from presel.models.model_files import check_model, locate, model_fingerprint
from presel.storage.shards import chunks
from presel.storage.stage import fields_identity

if TYPE_CHECKING:
    from presel.models.chat import Chat, ChatModel


@component
class LocalModel(Generator):
    """An image-text-to-text model of transformers, from a folder or the hub, spoken to by its chat template.

    An answer depends on the image, the words, the model and the seed; not on what else is asked, so that a
    run that was killed ends as it would have.

    Attributes:
        revision: Revision on the hub.
        dtype: Precision of the weights; `auto` for the one that they are stored in.
        seed: Decides what is drawn at a temperature above 0.
        batch_size: Images asked about at once.
        accelerator: `cpu`, `gpu`, or `auto` for a GPU if there is one; answers written on any device count.
    """

    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(gt=0)] = field(default=16, compare=False)
    accelerator: Literal["auto", "cpu", "gpu"] = field(default="auto", compare=False)

    def identity(self) -> dict[str, Any]:
        """The model's content and how it is asked; not where it lies."""
        return fields_identity(self) | {"model": self._fingerprint}

    def body(self, image: Wanted) -> dict[str, Any]:
        """What the model is asked, the image left out, and all else that decides the answer."""
        decides = {"model": self._fingerprint, "dtype": self.dtype, "seed": self.seed}
        return super().body(image) | decides

    def check(self, files: PoolFiles, tasks: Sequence[str]) -> None:
        """Makes sure that there is such a model, that it can chat, and the device that it is to run on."""
        super().check(files, tasks)
        check_model(self.model, self.revision, "instructions.model")
        import torch

        from presel.models.chat import load_processor

        load_processor(locate(self.model), self.revision)
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise PreselError("instructions.accelerator=gpu: there is no GPU; set it to cpu or auto")

    def reveal(self, wanted: Sequence[Wanted], files: PoolFiles) -> Revealed:
        """Asks the model about the images that it was not asked about yet."""
        with Answers.opened(self.answers) as answers:
            due = self.unsettled(wanted, answers)
            broken = broken_images(due, files.images)
            due = [image for image in due if image.id not in broken]
            if due:
                self._ask(due, files.images, answers)
            records, unanswered = self.settled(wanted, answers)
            return Revealed(records, unanswered | broken)

    @cached_property
    def _fingerprint(self) -> str:
        return model_fingerprint(self.model, self.revision)

    def _ask(self, wanted: Sequence[Wanted], images: Path, answers: Answers) -> None:
        from presel.models.chat import ChatModel
        from presel.models.hardware import device_for

        model = ChatModel(locate(self.model), self.revision, self.dtype, device_for(self.accelerator))
        # Without a temperature the second answer would be the first.
        for _ in range(self.attempts if self.temperature else 1):
            unsettled = self.unsettled(wanted, answers)
            with progress("writing instructions", len(unsettled)) as advance:
                for batch in self._batches(unsettled):
                    self._ask_batch(batch, model, images, answers)
                    advance(len(batch))

    def _ask_batch(self, batch: Sequence[Wanted], model: "ChatModel", images: Path, answers: Answers) -> None:
        asked = [self.asked(image) for image in batch]
        # Another attempt draws anew.
        seeds = [int(one[:12], 16) + len(answers.to(one)) for one in asked]
        chats = [self._chat(image, images) for image in batch]
        max_tokens = self.prompts.of(batch[0].task).max_tokens
        completions = model.complete(chats, max_tokens, self.temperature, seeds)
        for image, digest, completion in zip(batch, asked, completions, strict=True):
            answers.add(digest, image.id, completion, Spent(completion["usage"]["total_tokens"], 0.0))

    def _batches(self, images: Sequence[Wanted]) -> Iterator[Sequence[Wanted]]:
        """Batches of like length, whose answers are cut at the same length; the longest first."""

        def lengths(image: Wanted) -> tuple[int, int]:
            prompt = self.prompts.of(image.task)
            messages = prompt.messages(image.id, image.task)
            return prompt.max_tokens, sum(len(message["content"]) for message in messages)

        by_length = sorted(images, key=lengths, reverse=True)
        for _, alike in groupby(by_length, key=lambda image: lengths(image)[0]):
            yield from chunks(list(alike), self.batch_size)

    def _chat(self, image: Wanted, images: Path) -> "Chat":
        *before, request = self.prompts.of(image.task).messages(image.id, image.task)
        parts = [
            {"type": "image", "image": open_image(images / image.image, read_wanted(images, image))},
            {"type": "text", "text": request["content"]},
        ]
        system = [_text(message) for message in before]
        return [*system, {"role": request["role"], "content": parts}]


def _text(message: dict[str, str]) -> dict[str, Any]:
    return {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]}
