"""Servers that speak OpenAI's chat API: OpenAI itself, vLLM, Ollama and their like."""

import json
from collections.abc import Sequence
from dataclasses import field
from itertools import chain
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from presel.component import component
from presel.console import console, progress
from presel.data.decoding import BrokenImage
from presel.data.listing import PoolFiles
from presel.data.sources import Source
from presel.errors import PreselError
from presel.instructions.answers import Answers, Completion, Spent
from presel.instructions.chat_service import Amount, ChatService, Usage
from presel.instructions.client import Server, Unanswered
from presel.instructions.provider import Estimate, Revealed, Wanted
from presel.instructions.request_pool import Asking, Kept
from presel.instructions.secrets import check_destination, has_credentials, is_variable


@component
class OpenAI(ChatService):
    """Asks a server about each image, many at once; an answer that came once is never asked for again.

    Attributes:
        base_url: Where the API is, up to and with `/v1`.
        key_variable: Environment variable that holds the key; None for a server without keys.
        concurrency: Most requests at once.
        timeout_s: Time that a request may take, in seconds, from connecting to the last byte of the answer.
        max_retries: How often a request is repeated that failed through no fault of its own.
        backoff_s: Wait before the first repetition, in seconds; it doubles with each, up to a minute.
        max_retry_after_s: Longest wait that a server may ask for, in seconds; a longer one ends the run.
        max_money: Most that all answers in the folder may cost; None for no limit.
        max_tokens_total: Most tokens of all answers in the folder, prompts included; None for no limit.
    """

    base_url: str = field(compare=False)
    key_variable: str | None = field(default="OPENAI_API_KEY", compare=False)
    concurrency: Annotated[int, Field(ge=1, le=1000)] = field(default=16, compare=False)
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = field(default=120.0, compare=False)
    max_retries: Annotated[int, Field(ge=0)] = field(default=6, compare=False)
    backoff_s: Annotated[float, Field(ge=0, le=86_400)] = field(default=1.0, compare=False)
    max_retry_after_s: Annotated[float, Field(ge=0, le=86_400)] = field(default=300.0, compare=False)
    max_money: Amount | None = field(default=None, compare=False)
    max_tokens_total: Annotated[int, Field(ge=0, le=10**15)] | None = field(default=None, compare=False)

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
        if self.max_money is not None and not self.priced:
            raise ValueError(
                f"max_money={self.max_money:g} without prices would never be reached; set "
                "price_per_million_prompt_tokens and price_per_million_answer_tokens"
            )
        super().__post_init__()

    def check_overrides(self, overrides: Sequence[str]) -> None:
        """Makes sure that no configuration file sends a key to a server of its choice."""
        check_destination(self.base_url, self.key_variable, overrides)

    def check_source(self, source: Source) -> None:
        """Makes sure of the key, the server and the cap, whatever the source."""
        with self._server() as server:
            server.check()
        if self.max_money is None:
            return
        if unpriced := Answers.read(self.answers).unpriced(self.model):
            raise PreselError(
                f"instructions.max_money: {unpriced} answers of {self.model} in {self.answers} were bought "
                "without prices, and their cost is not known; limit instructions.max_tokens_total instead"
            )

    def exceeded(self, estimate: Estimate) -> list[str]:
        """The limits that such a cost would pass, as settings with their values."""
        limits = {
            "max_money": (estimate.money, self.max_money),
            "max_tokens_total": (estimate.tokens, self.max_tokens_total),
        }
        return [
            f"instructions.{name}={most:.15g}"
            for name, (cost, most) in limits.items()
            if most is not None and cost > most
        ]

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

    def _ask(self, due: Sequence[Wanted], wanted: int, answers: Answers, images: Path) -> dict[str, str]:
        put_up_with = int(self.max_unanswered_share * wanted)
        with self._server() as server, progress("writing instructions", len(due)) as advance:
            errand = _Errand(self, server, answers, images, {image.task for image in due})
            asking = Asking(due, errand, self.concurrency, self.max_retries, put_up_with, advance)
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
            timeout_s=self.timeout_s,
            backoff_s=self.backoff_s,
            max_retry_after_s=self.max_retry_after_s,
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
        self._expected = {task: provider.expected(task) for task in tasks}
        self._told_of_estimates = False
        for task in tasks:
            for answer in chain.from_iterable(answers.of(provider.kind(task))):
                self._learn(task, provider.usage(task, answer))

    def send(self, image: Wanted) -> Completion:
        try:
            body = self._provider.request(image, self._images)
        except BrokenImage as error:
            raise Unanswered(error.reason) from None
        return self._server.complete(json.dumps(body).encode())

    def pause(self, repetition: int, after: float) -> float:
        return self._server.pause(repetition, after)

    def keep(self, image: Wanted, answer: Completion) -> Kept:
        usage = self._provider.usage(image.task, answer)
        if usage.counted:
            self._learn(image.task, usage)
        self._add(image, answer, usage)
        why_not = self._provider.settled([image], self._answers).unanswered.get(image.id)
        settled = why_not is None or not self._provider.unsettled([image], self._answers)
        return Kept(settled, why_not)

    def charge(self, image: Wanted, text: str) -> None:
        self._add(image, text, self._expected[image.task])

    def _add(self, image: Wanted, raw: Completion | str, usage: Usage) -> None:
        if not usage.counted and not self._told_of_estimates:
            console.notice("answers without a count of tokens, or cut short: their cost is estimated")
            self._told_of_estimates = True
        asked, kind = self._provider.asked(image), self._provider.kind(image.task)
        self._answers.add(asked, image.id, raw, self._provider.cost(usage), kind)

    def _learn(self, task: str, usage: Usage) -> None:
        """From now on expects as much as the dearest answer took."""
        before = self._expected[task]
        self._expected[task] = Usage(
            max(before.prompt, usage.prompt), max(before.answer, usage.answer), counted=False
        )

    def has_room(self, images: Sequence[Wanted]) -> bool:
        return not self._provider.exceeded(self._with(images))

    def why_no_room(self, image: Wanted) -> str:
        """Which limit the next request may pass, and how far it is used."""
        expected = self._provider.cost(self._expected[image.task])
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

    def _with(self, images: Sequence[Wanted]) -> Estimate:
        """What is spent, and what these images may cost besides."""
        expected = [self._provider.cost(self._expected[image.task]) for image in images]
        return Estimate(
            self._answers.tokens + sum(one.tokens for one in expected),
            self._answers.money + sum(one.money for one in expected),
        )


def _summary(revealed: Revealed, failed: int, spent: Spent) -> str:
    refused = sum(why.startswith("refused") for why in revealed.unanswered.values())
    malformed = len(revealed.unanswered) - refused - failed
    counts = {"refused": refused, "malformed": malformed, "failed": failed}
    told = "".join(f", {count:,} {what}" for what, count in counts.items() if count)
    money = f", cost {spent.money:.4g}" if spent.money else ""
    return f"  {len(revealed.records):,} images answered{told}; {spent.tokens:,} tokens{money} in this run"
