"""Servers that speak OpenAI's chat API: OpenAI itself, vLLM, Ollama and their like."""

import hashlib
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeGuard
from urllib.parse import urlsplit

from pydantic import Field
from pydantic.dataclasses import dataclass as component

from presel.component import STRICT
from presel.console import console, progress
from presel.data.images import BrokenImage
from presel.data.listing import PoolFiles
from presel.data.sources import Source
from presel.errors import PreselError
from presel.generation.answers import Answers, Completion, Spent
from presel.generation.asking import Asking
from presel.generation.generator import Generator
from presel.generation.pictures import data_url, with_picture
from presel.generation.server import Server, Unanswered
from presel.ledger import Estimate, Revealed, Wanted
from presel.secrets import has_credentials, is_variable

_CHARACTERS_PER_TOKEN = 4
_OURS = {"model", "messages", "stream", "n"}


class Usage(NamedTuple):
    """Tokens of a request.

    Attributes:
        prompt: What was sent, image included.
        answer: What came back.
        counted: Whether the server counted them.
    """

    prompt: int
    answer: int
    counted: bool


@component(frozen=True, kw_only=True, config=STRICT)
class OpenAI(Generator):
    """Asks a server about each image, many at once; an answer that came once is never asked for again.

    Attributes:
        base_url: Where the API is, up to and with `/v1`.
        key_variable: Environment variable that holds the key; None for a server without keys.
        parameters: Further keys of each request, such as `top_p`; None as a value leaves out one that is sent
            otherwise.
        image_side: Longer images are shrunk to this many pixels; None for no limit.
        image_detail: How closely OpenAI's models look; None leaves it to the server.
        concurrency: Most requests at once.
        timeout_s: How long an answer may take, in seconds.
        max_retries: How often a request is repeated that failed through no fault of its own.
        backoff_s: Wait before the first repetition, in seconds; it doubles with each, up to a minute.
        price_per_million_prompt_tokens: Price of a million tokens of prompts, images included.
        price_per_million_answer_tokens: Price of a million tokens of answers.
        max_money: Most that all answers in the folder may cost; None for no limit.
        max_tokens_total: Most tokens of all answers in the folder, prompts included; None for no limit.
        image_tokens: Tokens that an image is taken to cost until an answer tells.
    """

    base_url: str = field(compare=False)
    key_variable: str | None = field(default="OPENAI_API_KEY", compare=False)
    parameters: dict[str, Any] | None = None
    image_side: Annotated[int, Field(ge=1)] | None = None
    image_detail: Literal["low", "high", "auto"] | None = None
    concurrency: Annotated[int, Field(ge=1, le=1000)] = field(default=16, compare=False)
    timeout_s: Annotated[float, Field(gt=0)] = field(default=120.0, compare=False)
    max_retries: Annotated[int, Field(ge=0)] = field(default=6, compare=False)
    backoff_s: Annotated[float, Field(ge=0)] = field(default=1.0, compare=False)
    price_per_million_prompt_tokens: Annotated[float, Field(ge=0)] = field(default=0.0, compare=False)
    price_per_million_answer_tokens: Annotated[float, Field(ge=0)] = field(default=0.0, compare=False)
    max_money: Annotated[float, Field(ge=0)] | None = field(default=None, compare=False)
    max_tokens_total: Annotated[int, Field(ge=0)] | None = field(default=None, compare=False)
    image_tokens: Annotated[int, Field(ge=0)] = field(default=1000, compare=False)

    def __post_init__(self) -> None:
        """Checks what goes together; a key that was given by mistake is not repeated in the message."""
        if has_credentials(self.base_url):
            raise ValueError(
                "base_url holds more than an address; a key belongs in the environment variable that "
                "key_variable names"
            )
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname or address.port == 0:
            raise ValueError("base_url must be an address such as https://api.openai.com/v1")
        if self.key_variable is not None and not is_variable(self.key_variable):
            raise ValueError("key_variable must be the name of an environment variable, never the key itself")
        if taken := _OURS & (self.parameters or {}).keys():
            raise ValueError(f"parameters may not hold '{min(taken)}', which is decided otherwise")
        prices = (self.price_per_million_prompt_tokens, self.price_per_million_answer_tokens)
        if self.max_money is not None and not any(prices):
            raise ValueError(
                f"max_money={self.max_money:g} without prices would never be reached; set "
                "price_per_million_prompt_tokens and price_per_million_answer_tokens"
            )

    def check_source(self, source: Source) -> None:
        """Makes sure of the key and the server, whatever the source."""
        self._server().check()

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

    def reveal(self, wanted: Sequence[Wanted], files: PoolFiles) -> Revealed:
        """Asks about the images that are not settled yet.

        Raises:
            PreselError: If there is no room for more requests, or the server turns all of them away.
        """
        with Answers.opened(self.answers) as answers:
            due = self.unsettled(wanted, answers)
            if not due:
                return self.settled(wanted, answers)
            before = answers.spent
            failed = self._ask(due, len(wanted), answers, files.images)
            records, unanswered = self.settled(wanted, answers)
            revealed = Revealed(records, {name: failed.get(name, why) for name, why in unanswered.items()})
            spent = Spent(answers.spent.tokens - before.tokens, answers.spent.money - before.money)
        console.print(_summary(revealed, len(failed), spent))
        return revealed

    def cost(self, usage: Usage) -> Spent:
        """What a request cost."""
        money = (
            usage.prompt * self.price_per_million_prompt_tokens
            + usage.answer * self.price_per_million_answer_tokens
        ) / 1e6
        return Spent(usage.prompt + usage.answer, money)

    def usage(self, task: str, answer: Completion | str) -> Usage:
        """Tokens of a request, estimated where the server does not tell."""
        given = answer.get("usage") if isinstance(answer, dict) else None
        if isinstance(given, dict):
            prompt, completion = given.get("prompt_tokens"), given.get("completion_tokens")
            if _is_count(prompt) and _is_count(completion):
                return Usage(prompt, completion, counted=True)
        text = answer if isinstance(answer, str) else json.dumps(answer.get("choices"))
        return Usage(self.expected(task).prompt, _tokens(text), counted=False)

    def request(self, image: Wanted, images: Path) -> bytes:
        """The request about an image.

        Raises:
            BrokenImage: If the image cannot be read.
        """
        body = self.body(image)
        messages = with_picture(body["messages"], data_url(images / image.image, self.image_side))
        if self.image_detail is not None:
            messages[-1]["content"][0]["image_url"]["detail"] = self.image_detail
        return json.dumps(body | {"messages": messages}).encode()

    def expected(self, task: str) -> Usage:
        """Tokens that a request is taken to cost before there is an answer."""
        body = self.body(Wanted("", "", task, ""))
        words = sum(_tokens(message["content"]) for message in body["messages"])
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        return Usage(self.image_tokens + words, limit or self.prompts.of(task).max_tokens, counted=False)

    def kind(self, task: str) -> str:
        """What answers are alike in cost."""
        return f"{self.model}, {self.prompts.name_of(task)}"

    def _ask(self, due: Sequence[Wanted], wanted: int, answers: Answers, images: Path) -> dict[str, str]:
        errand = _Errand(self, self._server(), answers, images, {image.task for image in due})
        put_up_with = int(self.max_unanswered_share * wanted)
        with progress("writing instructions", len(due)) as advance:
            asking = Asking(due, errand, self.concurrency, put_up_with, advance)
            asking.ask()
        if asking.waiting:
            raise PreselError(
                f"{errand.why_no_room(asking.waiting[0])}; {len(asking.waiting)} of {wanted} images are "
                "still to be asked about; raise it, then run the same command again: what was answered is "
                "kept"
            )
        return asking.failed

    def _server(self) -> Server:
        return Server(
            self.base_url,
            self.key_variable,
            concurrency=self.concurrency,
            timeout_s=self.timeout_s,
            max_retries=self.max_retries,
            backoff_s=self.backoff_s,
        )


class _Errand:
    """What is asked of the server, and what becomes of its answers."""

    def __init__(
        self, provider: OpenAI, server: Server, answers: Answers, images: Path, tasks: set[str]
    ) -> None:
        self._provider = provider
        self._server = server
        self._answers = answers
        self._images = images
        self._expected = {task: provider.cost(provider.expected(task)) for task in tasks}
        self._told_of_estimates = False

    def send(self, image: Wanted, unreadable: Callable[[str], None], stopped: threading.Event) -> Completion:
        try:
            body = self._provider.request(image, self._images)
        except BrokenImage as error:
            raise Unanswered(error.reason) from None
        return self._server.complete(body, unreadable, stopped)

    def keep(self, image: Wanted, answer: Completion | str) -> bool:
        usage = self._provider.usage(image.task, answer)
        if not usage.counted and not self._told_of_estimates:
            console.print(
                "[yellow]…[/yellow] answers without a count of tokens: estimated, a token for 4 characters"
            )
            self._told_of_estimates = True
        asked, kind = self._provider.asked(image), self._provider.kind(image.task)
        self._answers.add(asked, image.id, answer, self._provider.cost(usage), kind)
        return not self._provider.unsettled([image], self._answers)

    def has_room(self, images: Sequence[Wanted]) -> bool:
        tokens, money = self._with(images)
        most_tokens, most_money = self._provider.max_tokens_total, self._provider.max_money
        return (most_tokens is None or tokens <= most_tokens) and (most_money is None or money <= most_money)

    def why_no_room(self, image: Wanted) -> str:
        """Which limit the next request may pass, and how far it is used."""
        expected = self._expected[image.task]
        most = self._provider.max_tokens_total
        if most is not None and self._with([image]).tokens > most:
            key = f"max_tokens_total={most}"
            spent, next_ = f"{self._answers.tokens} tokens", f"{expected.tokens}"
        else:
            key = f"max_money={self._provider.max_money:g}"
            spent, next_ = f"{self._answers.money:.4g}", f"{expected.money:.2g}"
        return (
            f"instructions.{key}: {spent} spent on the answers in {self._answers.path.parent}, and the next "
            f"may take {next_}"
        )

    def _with(self, images: Sequence[Wanted]) -> Spent:
        """What is spent, and what these images may cost besides."""
        expected = [self._expected[image.task] for image in images]
        return Spent(
            self._answers.tokens + sum(one.tokens for one in expected),
            self._answers.money + sum(one.money for one in expected),
        )


def _tokens(text: str) -> int:
    return math.ceil(len(text) / _CHARACTERS_PER_TOKEN)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and value >= 0


def _summary(revealed: Revealed, failed: int, spent: Spent) -> str:
    refused = sum(why.startswith("refused") for why in revealed.unanswered.values())
    malformed = len(revealed.unanswered) - refused - failed
    counts = {"refused": refused, "malformed": malformed, "failed": failed}
    told = "".join(f", {count:,} {what}" for what, count in counts.items() if count)
    money = f", cost {spent.money:.4g}" if spent.money else ""
    return f"  {len(revealed.records):,} images answered{told}; {spent.tokens:,} tokens{money} in this run"
