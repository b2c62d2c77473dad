"""Sends requests concurrently, within a concurrency limit and a budget cap.

Not the retries of a client library: those happen inside one call, without a check of the budget cap.
"""

import logging
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from presel.console.signals import first_signal
from presel.instructions.answers import Completion
from presel.instructions.client import PermanentError, RetryableError
from presel.instructions.provider import NOT_REQUESTED, InstructionRequest

_log = logging.getLogger(__name__)

# Give up after this many consecutive failures, if more images failed than the run tolerates.
_MAX_CONSECUTIVE_FAILURES = 20
# Longer waits are announced on the terminal.
_LONG_WAIT_S = 10.0


class Outcome(NamedTuple):
    """Result of one request: the answer, or the error."""

    image: InstructionRequest
    result: Completion | Exception


class _Attempt(NamedTuple):
    """One request to send; a retry waits `delay` seconds first, and keeps the previous error as `reason`."""

    image: InstructionRequest
    delay: float = 0.0
    reason: str = ""


class AnswerStatus(NamedTuple):
    """What became of an answer.

    Attributes:
        done: Whether its image needs no further request.
        why_not: Why the answer is unusable; None if it is usable.
    """

    done: bool
    why_not: str | None


class RequestHandler(Protocol):
    """Sends single requests, stores their answers and keeps count of their cost."""

    def send(self, image: InstructionRequest) -> Completion:
        """Sends one request; called in worker threads.

        Raises:
            RetryableError: If a retry may succeed.
            PermanentError: If none will.
        """

    def backoff(self, retry: int, retry_after: float) -> float:
        """Seconds to wait before a retry, counted from 1; `retry_after` is what the server asked for."""

    def store(self, image: InstructionRequest, answer: Completion) -> AnswerStatus:
        """Writes an answer to disk."""

    def store_partial(self, image: InstructionRequest, text: str) -> None:
        """Writes the received part of a failed answer to disk, with the cost that it may have caused."""

    def within_budget(self, images: Sequence[InstructionRequest]) -> bool:
        """Whether the budget cap allows requests for all these images to be in flight together."""


class RequestPool:
    """Worker threads send; only the calling thread schedules, counts cost and stores answers.

    Ctrl-C, SIGTERM or an error that would hit every request stops the sending; answers to the requests in
    flight are still awaited and stored.

    Attributes:
        failed: Why there is no answer, by image.
        queue: Images whose request, or next retry, is not sent yet.
    """

    def __init__(
        self,
        images: Sequence[InstructionRequest],
        handler: RequestHandler,
        concurrency: int,
        max_retries: int,
        max_failures: int,
        advance: Callable[[int], None],
    ) -> None:
        """Prepares the pool; `run` starts it.

        Args:
            images: The images to request instructions for.
            handler: Sends the requests and stores the answers.
            concurrency: Maximum number of requests in flight.
            max_retries: Maximum number of retries after a transient error.
            max_failures: Number of images without a usable answer that the run tolerates.
            advance: Called with the number of newly finished images.
        """
        self.failed: dict[str, str] = {}
        self.queue = deque(images)
        self._handler = handler
        self._concurrency = min(concurrency, len(images))
        self._max_retries = max_retries
        self._max_failures = max_failures
        self._advance = advance
        self._in_flight: dict[str, InstructionRequest] = {}
        self._errors: Counter[str] = Counter()
        self._retries: dict[str, _Attempt] = {}
        self._announced_until = 0.0
        self._without_answer: set[str] = set()
        self._consecutive_failures = 0
        self._stop_cause: Exception | signal.Signals | None = None
        self._stopped = threading.Event()
        self._attempts: SimpleQueue[_Attempt | None] = SimpleQueue()
        self._outcomes: SimpleQueue[Outcome | signal.Signals] = SimpleQueue()

    def run(self) -> None:
        """Sends requests until every image is done or failed, or the budget cap is reached.

        A signal takes effect once the answers in flight are stored.

        Raises:
            PreselError: If the server rejects all requests.
        """
        with self._worker_threads(), first_signal(self._outcomes.put):
            self._send_allowed()
            while self._in_flight:
                self._handle(self._outcomes.get())
                self._send_allowed()
        if not self._outcomes.empty():
            # A signal, while the last answer was stored.
            self._handle(self._outcomes.get())
        if isinstance(self._stop_cause, signal.Signals):
            signal.raise_signal(self._stop_cause)
            # Reached if the signal's handler returns.
            raise KeyboardInterrupt
        if self._stop_cause is not None:
            raise self._stop_cause

    def _send_allowed(self) -> None:
        """Sends as many requests as the concurrency limit and the budget cap allow."""
        while self.queue and self._stop_cause is None and len(self._in_flight) < self._concurrency:
            image = self.queue[0]
            if not self._handler.within_budget([*self._in_flight.values(), image]):
                return
            self._in_flight[image.id] = self.queue.popleft()
            self._attempts.put(self._retries.pop(image.id, _Attempt(image)))

    def _handle(self, outcome: Outcome | signal.Signals) -> None:
        if isinstance(outcome, signal.Signals):
            self._stop(outcome)
            _log.warning(
                f"waiting for {len(self._in_flight)} answers in flight; Ctrl-C or SIGTERM discards them"
            )
            return
        image, result = outcome
        del self._in_flight[image.id]
        if isinstance(result, RetryableError):
            self._retry(image, result)
        elif isinstance(result, PermanentError):
            self._fail(image, str(result))
        elif isinstance(result, Exception):
            self._stop(result)
        else:
            self._store(image, result)

    def _store(self, image: InstructionRequest, answer: Completion) -> None:
        del self._errors[image.id]
        status = self._handler.store(image, answer)
        if status.done:
            self._advance(1)
        else:
            self.queue.append(image)
        if status.why_not is None:
            self._consecutive_failures = 0
            self._without_answer.discard(image.id)
        else:
            self._count_failure(image, status.why_not)

    def _retry(self, image: InstructionRequest, error: RetryableError) -> None:
        """Puts an image first in the queue; while its retry waits, it counts as a request in flight."""
        if error.partial is not None:
            self._handler.store_partial(image, error.partial)
        self._errors[image.id] += 1
        count = self._errors[image.id]
        reason = f"{error}, after {count} requests"
        if count > self._max_retries or self._stopped.is_set():
            self._fail(image, reason)
            return
        delay = self._handler.backoff(count, error.retry_after)
        self._announce_wait(delay, error)
        self._retries[image.id] = _Attempt(image, delay, reason)
        self.queue.appendleft(image)

    def _announce_wait(self, delay: float, reason: RetryableError) -> None:
        until = time.monotonic() + delay
        if delay > _LONG_WAIT_S and until > self._announced_until + _LONG_WAIT_S:
            self._announced_until = until
            _log.warning(f"waiting {delay:.0f} s before the next request ({reason})")

    def _fail(self, image: InstructionRequest, reason: str) -> None:
        self.failed[image.id] = reason
        self._advance(1)
        self._count_failure(image, reason)

    def _count_failure(self, image: InstructionRequest, reason: str) -> None:
        """Gives up after many consecutive failures that exceed `max_failures`: every request may cost."""
        self._without_answer.add(image.id)
        self._consecutive_failures += 1
        too_many = len(self._without_answer) > self._max_failures
        if self._consecutive_failures < _MAX_CONSECUTIVE_FAILURES or not too_many:
            return
        why = f"{NOT_REQUESTED}, after {self._consecutive_failures} consecutive failures (last: {reason})"
        # Images that did get an answer have a reason of their own.
        self.failed |= {image.id: why for image in self.queue if image.id not in self._without_answer}
        self.failed |= {name: attempt.reason for name, attempt in self._retries.items()}
        self._advance(len(self.queue))
        self.queue.clear()
        self._stopped.set()

    def _stop(self, cause: Exception | signal.Signals) -> None:
        self._stop_cause = self._stop_cause or cause
        self._stopped.set()

    def _work(self) -> None:
        while (attempt := self._attempts.get()) is not None:
            self._outcomes.put(Outcome(attempt.image, self._result(attempt)))

    def _result(self, attempt: _Attempt) -> Completion | Exception:
        if attempt.delay and self._stopped.wait(attempt.delay):
            return PermanentError(attempt.reason)
        try:
            return self._handler.send(attempt.image)
        # Raised by the calling thread.
        except Exception as error:
            return error

    @contextmanager
    def _worker_threads(self) -> Iterator[None]:
        # Daemon threads, because a second Ctrl-C does not wait for them.
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._concurrency)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for _ in threads:
                self._attempts.put(None)
