"""Servers with OpenAI's chat API: OpenAI itself, vLLM, Ollama and others."""

import json
import logging
from collections.abc import Sequence
from dataclasses import field
from itertools import chain
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from presel.component import component
from presel.console import progress
from presel.data.decoding import BrokenImage
from presel.data.listing import PoolFiles
from presel.data.sources import Source
from presel.errors import PreselError
from presel.instructions.answers import Answers, Completion
from presel.instructions.chat_service import Amount, ChatService, Usage
from presel.instructions.client import ChatClient, PermanentError
from presel.instructions.provider import Cost, InstructionRequest, ProviderResult
from presel.instructions.request_pool import AnswerStatus, RequestPool
from presel.instructions.secrets import check_destination, has_credentials, is_variable

_log = logging.getLogger(__name__)


@component
class OpenAI(ChatService):
    """Sends a request per image to a server, concurrently; no request that was answered is sent again.

    Attributes:
        base_url: URL of the API, including `/v1`.
        key_variable: Environment variable that holds the key; None for a server without keys.
        concurrency: Maximum number of requests in flight.
        timeout_s: Timeout of a request in seconds, from connecting to the last byte of the answer.
        max_retries: Maximum number of retries of a request after transient errors.
        backoff_s: Wait before the first retry, in seconds; doubles with each, up to a minute.
        max_retry_after_s: Longest `Retry-After` that is honored, in seconds; a longer one ends the run.
        max_money: Budget cap: maximum cost of all answers in the folder; None for no limit.
        max_tokens_total: Maximum tokens of all answers in the folder, including prompts; None for no limit.
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
        """Checks settings that depend on each other; no message quotes a key that was given by mistake."""
        if has_credentials(self.base_url):
            raise ValueError(
                "base_url contains more than an address; put the key into the environment variable that "
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
        """Checks that no configuration file sends a key to a server of its choice."""
        check_destination(self.base_url, self.key_variable, overrides)

    def check_source(self, source: Source) -> None:
        """Checks the key, the server and the budget cap, for any source."""
        with self._client() as client:
            client.check()
        if self.max_money is None:
            return
        if unpriced := Answers.read(self.answers).unpriced(self.model):
            raise PreselError(
                f"instructions.max_money: {unpriced} answers of {self.model} in {self.answers} were bought "
                "without prices, so that their cost is unknown; limit instructions.max_tokens_total instead"
            )

    def exceeded(self, estimate: Cost) -> list[str]:
        """The limits that this cost would exceed, as settings with their values."""
        limits = {
            "max_money": (estimate.money, self.max_money),
            "max_tokens_total": (estimate.tokens, self.max_tokens_total),
        }
        return [
            f"instructions.{name}={most:.15g}"
            for name, (cost, most) in limits.items()
            if most is not None and cost > most
        ]

    def reveal(self, requests: Sequence[InstructionRequest], files: PoolFiles) -> ProviderResult:
        """Sends the requests that have no usable answer yet.

        Raises:
            PreselError: If the budget cap is reached, or the server rejects all requests.
        """
        with Answers.opened(self.answers) as answers:
            due = self.open_requests(requests, answers)
            if not due:
                return self.results(requests, answers)
            before = answers.cost
            failed = self._send(due, len(requests), answers, files.images)
            records, unanswered = self.results(requests, answers)
            unanswered = {name: failed.get(name, why) for name, why in unanswered.items()}
            cost = Cost(answers.tokens - before.tokens, answers.money - before.money)
        result = ProviderResult(records, unanswered)
        _log.info(_summary(result, len(failed), cost))
        return result

    def _send(
        self, due: Sequence[InstructionRequest], total: int, answers: Answers, images: Path
    ) -> dict[str, str]:
        """Sends requests; returns why there is no answer, by image."""
        max_failures = int(self.max_unanswered_share * total)
        with self._client() as client, progress("writing instructions", len(due)) as advance:
            handler = _Handler(self, client, answers, images, {image.task for image in due})
            pool = RequestPool(due, handler, self.concurrency, self.max_retries, max_failures, advance)
            pool.run()
        if pool.queue:
            raise PreselError(
                f"{handler.exhausted_limit(pool.queue[0])}; {len(pool.queue)} of {total} images are still to "
                "be requested; raise the limit, then run the same command again: answers are kept"
            )
        return pool.failed

    def _client(self) -> ChatClient:
        return ChatClient(
            self.base_url,
            self.key_variable,
            timeout_s=self.timeout_s,
            backoff_s=self.backoff_s,
            max_retry_after_s=self.max_retry_after_s,
        )


class _Handler:
    """The `RequestHandler` of a server: also estimates the cost of the next request from past answers."""

    def __init__(
        self, provider: OpenAI, client: ChatClient, answers: Answers, images: Path, tasks: set[str]
    ) -> None:
        self._provider = provider
        self._client = client
        self._answers = answers
        self._images = images
        self._expected = {task: provider.expected(task) for task in tasks}
        self._announced_estimates = False
        for task in tasks:
            for answer in chain.from_iterable(answers.of_cost_class(provider.cost_class(task))):
                self._learn(task, provider.usage(task, answer))

    def send(self, image: InstructionRequest) -> Completion:
        try:
            body = self._provider.request(image, self._images)
        except BrokenImage as error:
            raise PermanentError(error.reason) from None
        return self._client.complete(json.dumps(body).encode())

    def backoff(self, retry: int, retry_after: float) -> float:
        return self._client.backoff(retry, retry_after)

    def store(self, image: InstructionRequest, answer: Completion) -> AnswerStatus:
        usage = self._provider.usage(image.task, answer, len(image.files))
        if usage.counted:
            self._learn(image.task, usage)
        self._add(image, answer, usage)
        why_not = self._provider.results([image], self._answers).unanswered.get(image.id)
        done = why_not is None or not self._provider.open_requests([image], self._answers)
        return AnswerStatus(done, why_not)

    def store_partial(self, image: InstructionRequest, text: str) -> None:
        self._add(image, text, self._expected_usage(image))

    def _add(self, image: InstructionRequest, raw: Completion | str, usage: Usage) -> None:
        if not usage.counted and not self._announced_estimates:
            _log.warning("answers without a token count, or truncated: their cost is estimated")
            self._announced_estimates = True
        digest, cost_class = self._provider.request_digest(image), self._provider.cost_class(image.task)
        self._answers.add(digest, image.id, raw, self._provider.cost(usage), cost_class)

    def _learn(self, task: str, usage: Usage) -> None:
        """Raises the estimate to the most expensive answer so far."""
        before = self._expected[task]
        self._expected[task] = Usage(
            max(before.prompt, usage.prompt), max(before.answer, usage.answer), counted=False
        )

    def within_budget(self, images: Sequence[InstructionRequest]) -> bool:
        return not self._provider.exceeded(self._cost_with(images))

    def exhausted_limit(self, image: InstructionRequest) -> str:
        """The limit that the next request may exceed, and how much of it is used."""
        expected = self._provider.cost(self._expected_usage(image))
        limit = self._provider.exceeded(self._cost_with([image]))[-1]
        if "max_tokens_total" in limit:
            used, next_ = f"{self._answers.tokens} tokens", f"{expected.tokens}"
        else:
            used, next_ = f"{self._answers.money:.4g}", f"{expected.money:.2g}"
        folder = self._answers.path.parent
        return f"{limit}: {used} spent on the answers in {folder}, and the next may take {next_}"

    def _expected_usage(self, image: InstructionRequest) -> Usage:
        """The expected tokens of a request; each of several images counts."""
        return self._provider.with_images(self._expected[image.task], len(image.files))

    def _cost_with(self, images: Sequence[InstructionRequest]) -> Cost:
        """The cost so far, plus the expected cost of these images."""
        expected = [self._provider.cost(self._expected_usage(image)) for image in images]
        return Cost(
            self._answers.tokens + sum(one.tokens for one in expected),
            self._answers.money + sum(one.money for one in expected),
        )


def _summary(result: ProviderResult, failed: int, cost: Cost) -> str:
    refused = sum(why.startswith("refused") for why in result.unanswered.values())
    malformed = len(result.unanswered) - refused - failed
    counts = {"refused": refused, "malformed": malformed, "failed": failed}
    others = "".join(f", {count:,} {what}" for what, count in counts.items() if count)
    money = f", cost {cost.money:.4g}" if cost.money else ""
    return f"  {len(result.records):,} images answered{others}; {cost.tokens:,} tokens{money} in this run"
