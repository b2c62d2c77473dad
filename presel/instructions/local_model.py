"""Instructions written by a vision-language model on this machine."""

from collections.abc import Iterator, Sequence
from dataclasses import field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from presel.component import Seed, component
from presel.console import progress
from presel.data.images import open_image
from presel.data.listing import PoolFiles
from presel.errors import PreselError
from presel.instructions.answers import Answers
from presel.instructions.generator import Generator
from presel.instructions.pictures import broken_images, read_requested
from presel.instructions.provider import Cost, InstructionRequest, ProviderResult
from presel.models.model_files import check_model, locate, model_fingerprint
from presel.storage.shards import chunks
from presel.storage.stage import fields_identity

if TYPE_CHECKING:
    from presel.models.chat import Chat, ChatModel


@component
class LocalModel(Generator):
    """An image-text-to-text model of transformers, from a folder or the hub, prompted by its chat template.

    An answer depends on the image, the prompt, the model and the seed, not on the other requests, so that an
    interrupted run gives the same answers when it is resumed.

    Attributes:
        revision: Revision on the hub.
        dtype: Precision of the weights: float32, bfloat16, float16, or auto for the stored one.
        seed: Random seed of sampling at a temperature above 0.
        batch_size: Number of images per batch.
        accelerator: `cpu`, `gpu`, or `auto` for a GPU if there is one; not part of a request's digest.
    """

    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: Seed = 0
    batch_size: Annotated[int, Field(gt=0)] = field(default=16, compare=False)
    accelerator: Literal["auto", "cpu", "gpu"] = field(default="auto", compare=False)

    def identity(self) -> dict[str, Any]:
        """The fields, with the model's content in place of its path."""
        return fields_identity(self) | {"model": self._fingerprint}

    def body(self, image: InstructionRequest) -> dict[str, Any]:
        """The request without the image, and everything else that decides the answer."""
        decides = {"model": self._fingerprint, "dtype": self.dtype, "seed": self.seed}
        return super().body(image) | decides

    def check(self, files: PoolFiles, tasks: Sequence[str]) -> None:
        """Checks that the model exists and has a chat template, and that the device is available."""
        super().check(files, tasks)
        check_model(self.model, self.revision, "instructions.model")
        import torch

        from presel.models.chat import load_chat_processor

        load_chat_processor(locate(self.model), self.revision)
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise PreselError("trainer.accelerator=gpu: there is no GPU; set it to cpu or auto")

    def open_requests(
        self, requests: Sequence[InstructionRequest], answers: Answers
    ) -> list[InstructionRequest]:
        """See the base class; at temperature 0 a second answer would equal the first."""
        due = super().open_requests(requests, answers)
        if self.temperature:
            return due
        return [one for one in due if not answers.for_request(self.request_digest(one))]

    def reveal(self, requests: Sequence[InstructionRequest], files: PoolFiles) -> ProviderResult:
        """Generates the answers that are not kept yet."""
        with Answers.opened(self.answers) as answers:
            due = self.open_requests(requests, answers)
            broken = broken_images(due, files.images)
            due = [image for image in due if image.id not in broken]
            if due:
                self._generate(due, files.images, answers)
            records, unanswered = self.results(requests, answers)
            return ProviderResult(records, unanswered | broken)

    @cached_property
    def _fingerprint(self) -> str:
        return model_fingerprint(self.model, self.revision)

    def retry_remedy(self, unanswered: Sequence[InstructionRequest]) -> str:
        """See the base class; without sampling, every attempt would give the same answer."""
        return super().retry_remedy(unanswered) if self.temperature else ""

    def _generate(self, requests: Sequence[InstructionRequest], images: Path, answers: Answers) -> None:
        from presel.models.chat import ChatModel
        from presel.models.hardware import device_for

        model = ChatModel(locate(self.model), self.revision, self.dtype, device_for(self.accelerator))
        for _ in range(self.attempts):
            due = self.open_requests(requests, answers)
            with progress("writing instructions", len(due)) as advance:
                for batch in self._batches(due):
                    self._generate_batch(batch, model, images, answers)
                    advance(len(batch))

    def _generate_batch(
        self, batch: Sequence[InstructionRequest], model: "ChatModel", images: Path, answers: Answers
    ) -> None:
        digests = [self.request_digest(image) for image in batch]
        # Each attempt has another seed.
        seeds = [int(one[:12], 16) + len(answers.for_request(one)) for one in digests]
        chats = [self._chat(image, images) for image in batch]
        max_tokens = self.prompts.of(batch[0].task).max_tokens
        completions = model.complete(chats, max_tokens, self.temperature, seeds)
        for image, digest, completion in zip(batch, digests, completions, strict=True):
            answers.add(digest, image.id, completion, Cost(completion["usage"]["total_tokens"], 0.0))

    def _batches(self, images: Sequence[InstructionRequest]) -> Iterator[Sequence[InstructionRequest]]:
        """Batches of prompts of similar length and equal `max_tokens`; the longest first."""

        def lengths(image: InstructionRequest) -> tuple[int, int]:
            prompt = self.prompts.of(image.task)
            messages = prompt.messages(image.id, image.task)
            return prompt.max_tokens, sum(len(message["content"]) for message in messages)

        by_length = sorted(images, key=lengths, reverse=True)
        for _, alike in groupby(by_length, key=lambda image: lengths(image)[0]):
            yield from chunks(list(alike), self.batch_size)

    def _chat(self, image: InstructionRequest, images: Path) -> "Chat":
        *before, request = self.prompts.of(image.task).messages(image.id, image.task)
        pictures = [
            {"type": "image", "image": open_image(path, content)}
            for path, content in read_requested(images, image)
        ]
        parts = [*pictures, {"type": "text", "text": request["content"]}]
        system = [
            {"role": one["role"], "content": [{"type": "text", "text": one["content"]}]} for one in before
        ]
        return [*system, {"role": request["role"], "content": parts}]
