"""Answers that were paid for, written down the moment they come: none is ever asked for twice."""

import errno
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from filelock import FileLock, Timeout

from presel.console import console
from presel.data.checks import check_file
from presel.errors import PreselError

# A chat completion as OpenAI-compatible servers give it.
Completion = dict[str, Any]

# What a killed process wrote is safe with the system at once; a power cut may take what is younger than this.
_SYNC_SECONDS = 1.0


# What no other try changes: a content filter's verdict, and an image that the model's service cannot read.
_FINAL_ERRORS = {
    "bio_policy",
    "content_filter",
    "content_policy_violation",
    "image_content_policy_violation",
    "image_parse_error",
    "invalid_image",
    "invalid_image_format",
    "moderation_blocked",
    "responsibleaipolicyviolation",
}
# No chat completion nests so deeply; Python's own limit depends on who calls.
_MAX_DEPTH = 50
# Of an answer that is no completion, and is kept for its cost alone.
_MAX_TEXT = 1 << 16
_MAX_AMOUNT = 1e15


def is_completion(value: object) -> TypeGuard[Completion]:
    """Whether JSON from outside is an object of moderate depth, an error included."""
    level: list[dict[str, Any] | list[Any]] = [value] if isinstance(value, dict) else []
    for _ in range(_MAX_DEPTH):
        inner = [one for outer in level for one in (outer.values() if isinstance(outer, dict) else outer)]
        level = [one for one in inner if isinstance(one, dict | list)]
    return isinstance(value, dict) and not level


def has_message(completion: Completion) -> bool:
    """Whether a model wrote something, of whatever use."""
    choices = completion.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return isinstance(first, dict) and isinstance(first.get("message"), dict)


def is_error(completion: Completion) -> bool:
    """Whether it is no completion, but says why there is none."""
    return bool(completion.get("error")) and not completion.get("choices")


def is_final_error(completion: Completion) -> bool:
    """Whether it is an error that no other try changes, such as a content filter's."""
    error = completion.get("error")
    if not is_error(completion) or not isinstance(error, dict):
        return False
    inner = error.get("innererror")
    codes = [error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, dict) else None]
    return any(isinstance(code, str) and code.lower() in _FINAL_ERRORS for code in codes)


class Spent(NamedTuple):
    """What answers cost.

    Attributes:
        tokens: Prompts and answers together.
        money: In the currency of the prices.
    """

    tokens: int
    money: float


class Answers:
    """Raw answers in `answers.jsonl`, one a line, under the digest of what was asked.

    A line is appended and flushed as soon as an answer is there, so that a killed process loses none; a half
    written last line is cut off by whoever opens the file next.
    """

    def __init__(self, file: Path) -> None:
        """Takes the file's place; use `opened`, or `read` to look only."""
        self.path = file
        self.tokens = 0
        self.money = 0.0
        self._found: dict[str, list[Completion]] = defaultdict(list)
        self._kinds: dict[str, set[str]] = defaultdict(set)
        self._unpriced: Counter[str] = Counter()
        self._stream: FileIO | None = None
        self._synced = 0.0

    @classmethod
    @contextmanager
    def opened(cls, folder: Path) -> Iterator["Answers"]:
        """Holds the folder's answers for this process alone; another run waits until they are closed.

        Raises:
            PreselError: If the file holds something else.
        """
        make_private(folder)
        with _held(FileLock(folder / "answers.lock"), folder):
            answers = cls(folder / "answers.jsonl")
            whole = answers._read()
            # Without a buffer, which a full disk would have flushed once more at the end.
            with open(answers.path, "ab", buffering=0, opener=_open_private) as stream:
                keep_private(answers.path)
                stream.truncate(whole)
                answers._stream = stream
                try:
                    yield answers
                finally:
                    answers._sync()

    @classmethod
    def read(cls, folder: Path) -> "Answers":
        """The folder's answers up to now, while another run may be adding to them.

        Raises:
            PreselError: If the file holds something else.
        """
        answers = cls(folder / "answers.jsonl")
        answers._read()
        return answers

    @property
    def spent(self) -> Spent:
        """What all answers cost, those of earlier runs too."""
        return Spent(self.tokens, self.money)

    def to(self, asked: str) -> list[Completion]:
        """All answers to what has this digest, oldest first."""
        return self._found.get(asked, [])

    def of(self, kind: str) -> list[list[Completion]]:
        """All answers of a kind, those to the same question together."""
        return [self._found[asked] for asked in sorted(self._kinds.get(kind, ()))]

    def unpriced(self, model: str) -> int:
        """How many answers of a model were bought while no prices were set."""
        return sum(count for kind, count in self._unpriced.items() if kind.startswith(f"{model}, "))

    def add(self, asked: str, name: str, raw: Completion | str, spent: Spent, kind: str = "") -> None:
        """Writes an answer down.

        Args:
            asked: Digest of what was asked.
            name: The image's id, for whoever reads the file.
            raw: The answer as it came; text where it was no whole answer, of which the beginning is kept.
            spent: What it cost.
            kind: What tells dear answers from cheap ones, see `of`.

        Raises:
            PreselError: If it cannot be written.
        """
        assert self._stream is not None
        line = {
            "asked": asked,
            "id": name,
            "kind": kind,
            "tokens": spent.tokens,
            "money": spent.money,
            "raw": raw[:_MAX_TEXT] if isinstance(raw, str) else raw,
        }
        # What a model writes may hold half of a surrogate pair.
        text = (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
        try:
            if self._stream.write(text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise PreselError(
                f"{self.path}: cannot write an answer down ({error.strerror}); make room, then run the same "
                "command again: what is whole is kept"
            ) from error
        self._count(line)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        assert self._stream is not None
        os.fsync(self._stream.fileno())
        self._synced = time.monotonic()

    def _count(self, line: dict[str, Any]) -> None:
        for name in ("tokens", "money"):
            if type(line[name]) not in (int, float) or not 0 <= line[name] <= _MAX_AMOUNT:
                raise ValueError(f"'{name}' is not a number from 0 to {_MAX_AMOUNT:g}")
        if not isinstance(line["asked"], str) or not isinstance(line.get("kind", ""), str):
            raise ValueError("'asked' or 'kind' is not text")
        self.tokens += line["tokens"]
        self.money += line["money"]
        if line["tokens"] and not line["money"]:
            self._unpriced[line.get("kind", "")] += 1
        if is_completion(line["raw"]):
            self._found[line["asked"]].append(line["raw"])
            self._kinds[line.get("kind", "")].add(line["asked"])

    def _read(self) -> int:
        """Reads whole lines, and says how many bytes they take."""
        whole = 0
        if not self.path.exists():
            return whole
        check_file(self.path)
        with self.path.open("rb") as file:
            for number, text in enumerate(file):
                if not text.endswith(b"\n"):
                    break
                whole += len(text)
                try:
                    self._count(json.loads(text))
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise PreselError(
                        f"{self.path}: line {number + 1} is no answer ({error}); restore the file, or delete "
                        "that line and have its image asked for again"
                    ) from error
        return whole


def make_private(folder: Path) -> None:
    """Makes a folder that its owner alone can read, or keeps others out of one that is there."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    keep_private(folder)


def keep_private(path: Path) -> None:
    """Takes others' permissions away, where the file or folder is this user's."""
    status = path.stat()
    if status.st_uid == os.geteuid() and status.st_mode & 0o077:
        path.chmod(status.st_mode & 0o700)


def _open_private(path: str, flags: int) -> int:
    """Opens a file; a new one can be read by its owner alone."""
    return os.open(path, flags, 0o600)


@contextmanager
def _held(lock: FileLock, folder: Path) -> Iterator[None]:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        console.notice(f"waiting for another run that adds answers to {folder}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
