"""What services that charge for tokens share: what a request holds, and what it costs."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeGuard

from pydantic import Field

from presel.component import component
from presel.instructions.answers import Answers, Completion, Spent, is_error
from presel.instructions.generator import Generator
from presel.instructions.pictures import data_url, read_wanted, with_picture
from presel.instructions.provider import Estimate, Wanted
from presel.instructions.secrets import named_like_a_key

_CHARACTERS_PER_TOKEN = 4
_OURS = {"model", "messages", "stream", "n"}
_LIMITS = ("max_completion_tokens", "max_tokens")
# More tokens than this no request has; what says so is mistaken.
_MOST_TOKENS = 10**9

# Money, in any currency; not infinite, since the sum of what was spent has to stay a number.
Amount = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class Usage(NamedTuple):
    """Tokens of a request.

    Attributes:
        prompt: What was sent, image included.
        answer: What came back, thoughts included.
        counted: Whether the server counted them.
    """

    prompt: int
    answer: int
    counted: bool


@component
class ChatService(Generator):
    """Base of the services that speak OpenAI's chat API.

    They share their answers: what one of them was asked in the same words, no other is asked again.

    Attributes:
        parameters: Further keys of each request, such as `top_p`; None as a value leaves out one that is sent
            otherwise.
        image_side: Longer images are shrunk to this many pixels; None for no limit.
        image_detail: How closely OpenAI's models look; None leaves it to the server.
        price_per_million_prompt_tokens: Price of a million tokens of prompts, images included.
        price_per_million_answer_tokens: Price of a million tokens of answers.
        image_tokens: Tokens that an image is taken to cost until an answer tells.
    """

    parameters: dict[str, Any] | None = None
    image_side: Annotated[int, Field(ge=1)] | None = None
    image_detail: Literal["low", "high", "auto"] | None = None
    price_per_million_prompt_tokens: Amount = field(default=0.0, compare=False)
    price_per_million_answer_tokens: Amount = field(default=0.0, compare=False)
    image_tokens: Annotated[int, Field(ge=0, le=_MOST_TOKENS)] = field(default=1000, compare=False)

    def __post_init__(self) -> None:
        """Checks the parameters."""
        given = self.parameters or {}
        if taken := _OURS & given.keys():
            raise ValueError(f"parameters may not hold '{min(taken)}', which is decided otherwise")
        if keys := [name for name in given if named_like_a_key(name)]:
            raise ValueError(f"parameters.{keys[0]} would hold a key; name its variable in key_variable")
        for name in _LIMITS:
            limit = given.get(name)
            if limit is not None and not (_is_count(limit) and limit > 0):
                raise ValueError(
                    f"parameters.{name} must be a whole number above 0, and at most {_MOST_TOKENS:,}"
                )

    @property
    def priced(self) -> bool:
        """Whether a request costs money."""
        return bool(self.price_per_million_prompt_tokens or self.price_per_million_answer_tokens)

    def estimate(self, images: Mapping[str, int]) -> Estimate:
        """What instructions would cost.

        By the mean of the answers that the same model gave to the same prompt. Without any, the prompt
        counts a token for four characters and `image_tokens` for the image, and the answer all that it may
        take.
        """
        answers = Answers.read(self.answers)
        tokens, money = 0.0, 0.0
        for task, count in images.items():
            kept = answers.of(self.kind(task))
            usages = [self.usage(task, one) for several in kept for one in several] or [self.expected(task)]
            # An image that was asked about twice costs twice.
            share = count / max(1, len(kept))
            costs = [self.cost(usage) for usage in usages]
            tokens += share * sum(cost.tokens for cost in costs)
            money += share * sum(cost.money for cost in costs)
        return Estimate(math.ceil(tokens), money)

    def body(self, image: Wanted) -> dict[str, Any]:
        """What the model is asked about an image, the image left out."""
        body = super().body(image) | (self.parameters or {})
        return {key: value for key, value in body.items() if value is not None}

    def asked(self, image: Wanted) -> str:
        """Digest of what is asked, and of how the image is shown."""
        text = json.dumps([super().asked(image), self.image_side, self.image_detail])
        return hashlib.sha256(text.encode()).hexdigest()

    def request(self, image: Wanted, images: Path) -> dict[str, Any]:
        """The request about an image.

        Raises:
            BrokenImage: If the image cannot be read, or is not the one that the pool's check saw.
        """
        body = self.body(image)
        url = data_url(read_wanted(images, image), images / image.image, self.image_side)
        messages = with_picture(body["messages"], url)
        if self.image_detail is not None:
            messages[-1]["content"][0]["image_url"]["detail"] = self.image_detail
        return body | {"messages": messages}

    def cost(self, usage: Usage) -> Spent:
        """What a request cost."""
        money = (
            usage.prompt * self.price_per_million_prompt_tokens
            + usage.answer * self.price_per_million_answer_tokens
        ) / 1e6
        return Spent(usage.prompt + usage.answer, money)

    def usage(self, task: str, answer: Completion | str) -> Usage:
        """Tokens of a request, estimated where the server does not tell; an error is free."""
        if isinstance(answer, dict) and is_error(answer):
            return Usage(0, 0, counted=True)
        given = answer.get("usage") if isinstance(answer, dict) else None
        if isinstance(given, dict):
            prompt, written, all_ = (
                given.get(f"{part}_tokens") for part in ("prompt", "completion", "total")
            )
            # No request is empty: a server that says so does not count.
            if _is_count(prompt) and prompt and _is_count(written):
                # Some count what the model thinks in the total alone, but charge for it as for an answer.
                return Usage(
                    prompt, max(written, all_ - prompt) if _is_count(all_) else written, counted=True
                )
        text = answer if isinstance(answer, str) else json.dumps(answer.get("choices"))
        return Usage(self.expected(task).prompt, _tokens(text), counted=False)

    def expected(self, task: str) -> Usage:
        """Tokens that a request is taken to cost before there is an answer."""
        body = self.body(Wanted("", "", task, ""))
        words = sum(_tokens(message["content"]) for message in body["messages"])
        limit = next((body[name] for name in _LIMITS if name in body), self.prompts.of(task).max_tokens)
        return Usage(self.image_tokens + words, limit, counted=False)

    def kind(self, task: str) -> str:
        """What answers are alike in cost."""
        return f"{self.model}, {self.prompts.name_of(task)}"


def _tokens(text: str) -> int:
    return math.ceil(len(text) / _CHARACTERS_PER_TOKEN)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MOST_TOKENS
