"""Asks about many images at once: so many in flight, and no further than the money goes."""

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from presel.console import console
from presel.generation.answers import Completion
from presel.generation.server import Unanswered
from presel.ledger import Wanted

# So many images in a row without an answer are no bad luck.
_HOPELESS = 20


class Came(NamedTuple):
    """What came of a request.

    Attributes:
        image: The image it was about.
        result: The answer; an answer that is no JSON, after which more comes; or what went wrong.
    """

    image: Wanted
    result: Completion | str | Exception


class Errand(Protocol):
    """What is asked, and what becomes of the answers."""

    def send(self, image: Wanted, unreadable: Callable[[str], None], stopped: threading.Event) -> Completion:
        """Asks about an image; called in other threads.

        Args:
            image: The image.
            unreadable: Takes answers that are no JSON.
            stopped: Says that nobody waits for further tries.

        Raises:
            Unanswered: If there is no answer.
        """

    def keep(self, image: Wanted, answer: Completion | str) -> bool:
        """Keeps an answer, and tells whether the image is settled by it."""

    def has_room(self, images: Sequence[Wanted]) -> bool:
        """Whether these images may be in flight together."""


class Asking:
    """Threads that send and wait, and the caller's, which alone decides, counts and keeps.

    Ctrl-C, or a failure that no request would escape, stops the sending; what is on its way is waited for
    and kept.

    Attributes:
        failed: Why there is no answer, by image.
        waiting: Images that are not asked about yet, or again.
    """

    def __init__(
        self,
        images: Sequence[Wanted],
        errand: Errand,
        concurrency: int,
        put_up_with: int,
        advance: Callable[[int], None],
    ) -> None:
        """Asks nothing yet.

        Args:
            images: What to ask about.
            errand: How.
            concurrency: Most images in flight.
            put_up_with: Images without an answer that do not yet spoil the run.
            advance: Told of images that are done with.
        """
        self.failed: dict[str, str] = {}
        self.waiting = deque(images)
        self._errand = errand
        self._concurrency = min(concurrency, len(images))
        self._put_up_with = put_up_with
        self._advance = advance
        self._in_flight: dict[str, Wanted] = {}
        self._failed_in_a_row = 0
        self._halt: BaseException | None = None
        self._stopped = threading.Event()
        self._out: SimpleQueue[Wanted | None] = SimpleQueue()
        # None stands for Ctrl-C.
        self._back: SimpleQueue[Came | None] = SimpleQueue()

    def ask(self) -> None:
        """Asks until all images are settled or failed, or there is no more room.

        Raises:
            KeyboardInterrupt: After Ctrl-C, once what was in flight is kept.
            PreselError: If the server turns all requests away.
        """
        with self._threads(), self._first_interrupt_taken():
            self._send_what_fits()
            while self._in_flight:
                self._take(self._back.get())
                self._send_what_fits()
        if self._halt is not None:
            raise self._halt

    def _send_what_fits(self) -> None:
        while self.waiting and self._halt is None and len(self._in_flight) < self._concurrency:
            image = self.waiting[0]
            if not self._errand.has_room([*self._in_flight.values(), image]):
                return
            self._in_flight[image.id] = self.waiting.popleft()
            self._out.put(image)

    def _take(self, came: Came | None) -> None:
        if came is None:
            self._stop(KeyboardInterrupt())
            console.print(
                f"[yellow]…[/yellow] waiting for {len(self._in_flight)} answers that are on their way; "
                "Ctrl-C again gives them up"
            )
            return
        image, result = came
        if isinstance(result, str):
            self._errand.keep(image, result)
            return
        del self._in_flight[image.id]
        if isinstance(result, Unanswered):
            self._fail(image, result)
        elif isinstance(result, Exception):
            self._stop(result)
        else:
            self._failed_in_a_row = 0
            if self._errand.keep(image, result):
                self._advance(1)
            else:
                self.waiting.append(image)

    def _fail(self, image: Wanted, reason: Unanswered) -> None:
        self.failed[image.id] = str(reason)
        self._failed_in_a_row += 1
        self._advance(1)
        if self._failed_in_a_row >= _HOPELESS and len(self.failed) > self._put_up_with:
            self._give_up()

    def _give_up(self) -> None:
        """Asks about no more images: the run is spoilt, and the server answers nobody."""
        why = f"not asked about, since {self._failed_in_a_row} images in a row had no answer"
        self.failed |= {image.id: why for image in self.waiting}
        self._advance(len(self.waiting))
        self.waiting.clear()
        self._stopped.set()

    def _stop(self, cause: BaseException) -> None:
        self._halt = self._halt or cause
        self._stopped.set()

    def _work(self) -> None:
        while (image := self._out.get()) is not None:
            self._back.put(Came(image, self._result(image)))

    def _result(self, image: Wanted) -> Completion | Exception:
        def unreadable(text: str) -> None:
            self._back.put(Came(image, text))

        try:
            return self._errand.send(image, unreadable, self._stopped)
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
    def _first_interrupt_taken(self) -> Iterator[None]:
        """Takes the first Ctrl-C as news among others: it cannot come between an answer and its file."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.getsignal(signal.SIGINT) or signal.default_int_handler

        def first(*_: object) -> None:
            signal.signal(signal.SIGINT, previous)
            self._back.put(None)

        signal.signal(signal.SIGINT, first)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
