"""Asks about many images at once: so many in flight, and no further than the money goes."""

import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from presel.console import console
from presel.instructions.answers import Completion
from presel.instructions.client import Again, Unanswered
from presel.instructions.provider import Wanted

# So many images in a row without an answer that can be used are no bad luck.
_HOPELESS = 20
# Who waits longer is told.
_LONG_PAUSE_S = 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Came(NamedTuple):
    """What came of a request: the answer, or what went wrong."""

    image: Wanted
    result: Completion | Exception


class _Sending(NamedTuple):
    """An image to ask about, after a pause in seconds if it was asked about in vain before."""

    image: Wanted
    pause: float = 0.0
    reason: str = ""


class Kept(NamedTuple):
    """What an answer is worth.

    Attributes:
        settled: Whether its image is not asked about again.
        why_not: Why it cannot be used, if it cannot.
    """

    settled: bool
    why_not: str | None


class Errand(Protocol):
    """What is asked, and what becomes of the answers."""

    def send(self, image: Wanted) -> Completion:
        """Asks about an image, once; called in other threads.

        Raises:
            Again: If another try may get an answer.
            Unanswered: If none will.
        """

    def pause(self, repetition: int, after: float) -> float:
        """Seconds to wait before a try, from the second one on, where the server asked for so many."""

    def keep(self, image: Wanted, answer: Completion) -> Kept:
        """Keeps an answer."""

    def charge(self, image: Wanted, text: str) -> None:
        """Counts a request that got no whole answer, and may have been charged for; keeps what came."""

    def has_room(self, images: Sequence[Wanted]) -> bool:
        """Whether these images may be in flight together."""


class Asking:
    """Threads that send and wait, and the caller's, which alone decides, counts and keeps.

    Ctrl-C, SIGTERM, or a failure that no request would escape, stops the sending; what is on its way is
    waited for and kept.

    Attributes:
        failed: Why there is no answer, by image.
        waiting: Images that are not asked about yet, or again.
    """

    def __init__(
        self,
        images: Sequence[Wanted],
        errand: Errand,
        concurrency: int,
        max_retries: int,
        put_up_with: int,
        advance: Callable[[int], None],
    ) -> None:
        """Asks nothing yet.

        Args:
            images: What to ask about.
            errand: How.
            concurrency: Most images in flight.
            max_retries: How often a request is repeated that failed through no fault of its own.
            put_up_with: Images without an instruction that do not yet spoil the run.
            advance: Told of images that are done with.
        """
        self.failed: dict[str, str] = {}
        self.waiting = deque(images)
        self._errand = errand
        self._concurrency = min(concurrency, len(images))
        self._max_retries = max_retries
        self._put_up_with = put_up_with
        self._advance = advance
        self._in_flight: dict[str, Wanted] = {}
        self._tries: Counter[str] = Counter()
        self._next_try: dict[str, _Sending] = {}
        self._told_to_wait_until = 0.0
        self._without: set[str] = set()
        self._in_vain = 0
        self._halt: Exception | signal.Signals | None = None
        self._stopped = threading.Event()
        self._out: SimpleQueue[_Sending | None] = SimpleQueue()
        self._back: SimpleQueue[Came | signal.Signals] = SimpleQueue()

    def ask(self) -> None:
        """Asks until all images are settled or failed, or there is no more room.

        A signal takes effect once what was in flight is kept.

        Raises:
            PreselError: If the server turns all requests away.
        """
        with self._threads(), self._first_signal_taken():
            self._send_what_fits()
            while self._in_flight:
                self._take(self._back.get())
                self._send_what_fits()
        if isinstance(self._halt, signal.Signals):
            signal.raise_signal(self._halt)
            # Where its handler returns.
            raise KeyboardInterrupt
        if self._halt is not None:
            raise self._halt

    def _send_what_fits(self) -> None:
        while self.waiting and self._halt is None and len(self._in_flight) < self._concurrency:
            image = self.waiting[0]
            if not self._errand.has_room([*self._in_flight.values(), image]):
                return
            self._in_flight[image.id] = self.waiting.popleft()
            self._out.put(self._next_try.pop(image.id, _Sending(image)))

    def _take(self, came: Came | signal.Signals) -> None:
        if isinstance(came, signal.Signals):
            self._stop(came)
            console.notice(
                f"waiting for {len(self._in_flight)} answers that are on their way; "
                "Ctrl-C or SIGTERM gives them up"
            )
            return
        image, result = came
        del self._in_flight[image.id]
        if isinstance(result, Again):
            self._repeat(image, result)
        elif isinstance(result, Unanswered):
            self._fail(image, str(result))
        elif isinstance(result, Exception):
            self._stop(result)
        else:
            self._keep(image, result)

    def _keep(self, image: Wanted, answer: Completion) -> None:
        del self._tries[image.id]
        kept = self._errand.keep(image, answer)
        if kept.settled:
            self._advance(1)
        else:
            self.waiting.append(image)
        if kept.why_not is None:
            self._in_vain = 0
            self._without.discard(image.id)
        else:
            self._count_in_vain(image, kept.why_not)

    def _repeat(self, image: Wanted, reason: Again) -> None:
        """Puts an image first in the queue: others are not sent while a server wants to be left alone."""
        if reason.text is not None:
            self._errand.charge(image, reason.text)
        self._tries[image.id] += 1
        tries = self._tries[image.id]
        told = f"{reason}, after {tries} requests"
        if tries > self._max_retries or self._stopped.is_set():
            self._fail(image, told)
            return
        pause = self._errand.pause(tries, reason.after)
        self._tell_of(pause, reason)
        self._next_try[image.id] = _Sending(image, pause, told)
        self.waiting.appendleft(image)

    def _tell_of(self, pause: float, reason: Again) -> None:
        until = time.monotonic() + pause
        if pause > _LONG_PAUSE_S and until > self._told_to_wait_until + _LONG_PAUSE_S:
            self._told_to_wait_until = until
            console.notice(f"waiting {pause:.0f} s before the next request ({reason})")

    def _fail(self, image: Wanted, reason: str) -> None:
        self.failed[image.id] = reason
        self._advance(1)
        self._count_in_vain(image, reason)

    def _count_in_vain(self, image: Wanted, reason: str) -> None:
        """Gives up where the run is spoilt, and no answer can be used: each may cost."""
        self._without.add(image.id)
        self._in_vain += 1
        if self._in_vain < _HOPELESS or len(self._without) <= self._put_up_with:
            return
        why = (
            f"not asked about, since {self._in_vain} times in a row no answer could be used (last: {reason})"
        )
        # Those that were asked about have reasons of their own.
        self.failed |= {image.id: why for image in self.waiting if image.id not in self._without}
        self.failed |= {name: sending.reason for name, sending in self._next_try.items()}
        self._advance(len(self.waiting))
        self.waiting.clear()
        self._stopped.set()

    def _stop(self, cause: Exception | signal.Signals) -> None:
        self._halt = self._halt or cause
        self._stopped.set()

    def _work(self) -> None:
        while (sending := self._out.get()) is not None:
            self._back.put(Came(sending.image, self._result(sending)))

    def _result(self, sending: _Sending) -> Completion | Exception:
        if sending.pause and self._stopped.wait(sending.pause):
            return Unanswered(sending.reason)
        try:
            return self._errand.send(sending.image)
        # Raised by the thread that waits for it.
        except Exception as error:
            return error

    @contextmanager
    def _threads(self) -> Iterator[None]:
        # Daemons, because a second Ctrl-C does not wait for them.
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._concurrency)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for _ in threads:
                self._out.put(None)

    @contextmanager
    def _first_signal_taken(self) -> Iterator[None]:
        """Queues the first Ctrl-C or SIGTERM: it cannot come between an answer and its file."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        # As under nohup, for example.
        previous = {number: one for number, one in handlers.items() if one not in (None, signal.SIG_IGN)}

        def restore() -> None:
            for number, handler in previous.items():
                signal.signal(number, handler)

        def first(number: int, _: object) -> None:
            restore()
            self._back.put(signal.Signals(number))

        for number in previous:
            signal.signal(number, first)
        try:
            yield
        finally:
            restore()
