"""Base class of services that bill tokens: the content of a request, and its cost."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeGuard

from pydantic import Field

from presel.component import component
from presel.instructions.answers import Answers, Completion, is_error
from presel.instructions.generator import Generator
from presel.instructions.pictures import data_url, read_requested
from presel.instructions.provider import Cost, InstructionRequest
from presel.instructions.secrets import holds_key

_CHARACTERS_PER_TOKEN = 4
_RESERVED = {"model", "messages", "stream", "n"}
_LIMITS = ("max_completion_tokens", "max_tokens")
# Larger token counts of a server are taken for errors.
_MAX_TOKENS = 10**9

# Money, in any currency; finite, so that sums stay numbers.
Amount = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class Usage(NamedTuple):
    """Tokens of a request.

    Attributes:
        prompt: Tokens sent, including the image.
        answer: Tokens generated, including reasoning.
        counted: Whether the server reported them; otherwise they are estimated.
    """

    prompt: int
    answer: int
    counted: bool


@component
class ChatService(Generator):
    """Base class of services that implement OpenAI's chat API.

    They share their answers: a request that one of them has answered is not sent to another whose settings of
    images are the same.

    Attributes:
        parameters: Additional keys of each request, such as `top_p`; a value of None removes a key.
        image_side: Images with a longer side are downscaled to this many pixels; None for no limit.
        image_detail: OpenAI's image resolution mode: low, high or auto; None for the server's default.
        price_per_million_prompt_tokens: Price of a million prompt tokens, including images.
        price_per_million_answer_tokens: Price of a million generated tokens.
        image_tokens: Assumed tokens of an image until an answer reports the number.
    """

    parameters: dict[str, Any] | None = None
    image_side: Annotated[int, Field(ge=1)] | None = None
    image_detail: Literal["low", "high", "auto"] | None = None
    price_per_million_prompt_tokens: Amount = field(default=0.0, compare=False)
    price_per_million_answer_tokens: Amount = field(default=0.0, compare=False)
    image_tokens: Annotated[int, Field(ge=0, le=_MAX_TOKENS)] = field(default=1000, compare=False)

    def __post_init__(self) -> None:
        """Checks the parameters."""
        given = self.parameters or {}
        if reserved := _RESERVED & given.keys():
            raise ValueError(f"parameters may not contain '{min(reserved)}', which other settings decide")
        if keys := [name for name, value in given.items() if holds_key(name, value)]:
            raise ValueError(f"parameters.{keys[0]} would contain a key; name its variable in key_variable")
        for name in _LIMITS:
            limit = given.get(name)
            if limit is not None and not (_is_count(limit) and limit > 0):
                raise ValueError(
                    f"parameters.{name} must be a whole number above 0, and at most {_MAX_TOKENS:,}"
                )

    @property
    def priced(self) -> bool:
        """Whether a request costs money."""
        return bool(self.price_per_million_prompt_tokens or self.price_per_million_answer_tokens)

    def estimate(self, images: Mapping[str, int]) -> Cost:
        """Expected cost of instructions, by the mean cost of kept answers of the same model and prompt.

        Without any, a prompt is assumed to have a token per four characters and `image_tokens` for the image,
        and an answer its maximum length.
        """
        answers = Answers.read(self.answers)
        tokens, money = 0.0, 0.0
        for task, count in images.items():
            kept = answers.of_cost_class(self.cost_class(task))
            usages = [self.usage(task, one) for several in kept for one in several] or [self.expected(task)]
            # An image that was requested twice costs twice.
            share = count / max(1, len(kept))
            costs = [self.cost(usage) for usage in usages]
            tokens += share * sum(cost.tokens for cost in costs)
            money += share * sum(cost.money for cost in costs)
        return Cost(math.ceil(tokens), money)

    def costs(self, requests: Sequence[InstructionRequest]) -> dict[str, Cost]:
        """What the kept answers cost, those that could not be used too, by image."""
        answers = Answers.read(self.answers)
        return {image.id: answers.cost_of(self.request_digest(image)) for image in requests}

    def body(self, image: InstructionRequest) -> dict[str, Any]:
        """The request for an image as JSON, without the image itself."""
        body = super().body(image) | (self.parameters or {})
        return {key: value for key, value in body.items() if value is not None}

    def request_digest(self, image: InstructionRequest) -> str:
        """SHA-256 of everything that decides the answer, including the image's size and detail."""
        text = json.dumps([super().request_digest(image), self.image_side, self.image_detail])
        return hashlib.sha256(text.encode()).hexdigest()

    def request(self, image: InstructionRequest, images: Path) -> dict[str, Any]:
        """The request for an image as JSON, with the image, or all images of a record in order.

        Raises:
            BrokenImage: If an image cannot be read, or changed since the pool was checked.
        """
        body = self.body(image)
        detail = {} if self.image_detail is None else {"detail": self.image_detail}
        pictures = [
            {
                "type": "image_url",
                "image_url": {"url": data_url(content, path, self.image_side), **detail},
            }
            for path, content in read_requested(images, image)
        ]
        *before, prompt = body["messages"]
        parts = [*pictures, {"type": "text", "text": prompt["content"]}]
        return body | {"messages": [*before, {"role": prompt["role"], "content": parts}]}

    def cost(self, usage: Usage) -> Cost:
        """Cost of a request."""
        money = (
            usage.prompt * self.price_per_million_prompt_tokens
            + usage.answer * self.price_per_million_answer_tokens
        ) / 1e6
        return Cost(usage.prompt + usage.answer, money)

    def usage(self, task: str, answer: Completion | str, images: int = 1) -> Usage:
        """Tokens of a request, estimated if the server does not report them; errors are free.

        Args:
            task: The image's task.
            answer: The answer; its text if it is no completion.
            images: Number of images that the request shows.
        """
        if isinstance(answer, dict) and is_error(answer):
            return Usage(0, 0, counted=True)
        given = answer.get("usage") if isinstance(answer, dict) else None
        if isinstance(given, dict):
            prompt, written, all_ = (
                given.get(f"{part}_tokens") for part in ("prompt", "completion", "total")
            )
            # No prompt is empty: a server that reports 0 tokens does not count.
            if _is_count(prompt) and prompt and _is_count(written):
                # Some report reasoning tokens in the total only, but bill them as generated ones.
                return Usage(
                    prompt, max(written, all_ - prompt) if _is_count(all_) else written, counted=True
                )
        text = answer if isinstance(answer, str) else json.dumps(answer.get("choices"))
        return self.with_images(Usage(self.expected(task).prompt, _tokens(text), counted=False), images)

    def expected(self, task: str) -> Usage:
        """Tokens of a request as estimated before there is an answer."""
        body = self.body(InstructionRequest("", "", task, ""))
        words = sum(_tokens(message["content"]) for message in body["messages"])
        limit = next((body[name] for name in _LIMITS if name in body), self.prompts.of(task).max_tokens)
        return Usage(self.image_tokens + words, limit, counted=False)

    def with_images(self, usage: Usage, images: int) -> Usage:
        """Estimated tokens of a request with several images, from those of one with a single image."""
        return usage._replace(prompt=usage.prompt + (images - 1) * self.image_tokens)

    def cost_class(self, task: str) -> str:
        """The cost class of a task's answers: model and prompt."""
        return f"{self.model}, {self.prompts.name_of(task)}"


def _tokens(text: str) -> int:
    return math.ceil(len(text) / _CHARACTERS_PER_TOKEN)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MAX_TOKENS
