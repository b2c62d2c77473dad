"""Paid answers, written to disk as they arrive, so that no request is ever paid for twice."""

import errno
import json
import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, TypeGuard

from filelock import FileLock, Timeout

from presel.data.checks import check_file
from presel.errors import PreselError
from presel.instructions.provider import Cost

_log = logging.getLogger(__name__)

# A chat completion, as OpenAI-compatible servers return it.
Completion = dict[str, Any]

# Least time between calls of fsync, which answers trigger: a killed process loses nothing, a power failure
# what came after the last call.
_SYNC_SECONDS = 1.0

# Errors that no retry resolves: rejected by a content filter, or an image that the service cannot read.
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
# Chat completions are never nested this deeply; Python's recursion limit depends on the caller.
_MAX_DEPTH = 50
# Characters kept of an answer that is not a completion, and stored only for its cost.
_MAX_TEXT = 1 << 16
_MAX_AMOUNT = 1e15


def is_completion(value: object) -> TypeGuard[Completion]:
    """Whether untrusted JSON is an object (a completion or an error) of moderate depth."""
    level: list[dict[str, Any] | list[Any]] = [value] if isinstance(value, dict) else []
    for _ in range(_MAX_DEPTH):
        inner = [one for outer in level for one in (outer.values() if isinstance(outer, dict) else outer)]
        level = [one for one in inner if isinstance(one, dict | list)]
    return isinstance(value, dict) and not level


def has_message(completion: Completion) -> bool:
    """Whether a completion holds a message of the model, usable or not."""
    choices = completion.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return isinstance(first, dict) and isinstance(first.get("message"), dict)


def is_error(completion: Completion) -> bool:
    """Whether this is an error in place of a completion."""
    return bool(completion.get("error")) and not completion.get("choices")


def is_final_error(completion: Completion) -> bool:
    """Whether this is an error that no retry resolves, such as a content filter's."""
    error = completion.get("error")
    if not is_error(completion) or not isinstance(error, dict):
        return False
    inner = error.get("innererror")
    codes = [error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, dict) else None]
    return any(isinstance(code, str) and code.lower() in _FINAL_ERRORS for code in codes)


class Answers:
    """Raw answers in `answers.jsonl`, one per line, each with the digest of its request.

    A line is appended and flushed as soon as an answer arrives, so that a killed process loses none; an
    incomplete last line is truncated when the file is next opened.
    """

    def __init__(self, file: Path) -> None:
        """Use `opened` to add answers, or `read` for reading only."""
        self.path = file
        self.tokens = 0
        self.money = 0.0
        self._found: dict[str, list[Completion]] = defaultdict(list)
        self._kinds: dict[str, set[str]] = defaultdict(set)
        self._costs: dict[str, Cost] = {}
        self._unpriced: Counter[str] = Counter()
        self._stream: FileIO | None = None
        self._synced = 0.0

    @classmethod
    @contextmanager
    def opened(cls, folder: Path) -> Iterator["Answers"]:
        """Locks the folder's answers for this process; another run waits until they are closed.

        Raises:
            PreselError: If a line of the file is malformed.
        """
        make_private(folder)
        with _locked(folder):
            answers = cls(folder / "answers.jsonl")
            complete = answers._read()
            # Unbuffered: after a full disk, a buffer would be flushed once more on close.
            with open(answers.path, "ab", buffering=0, opener=_open_private) as stream:
                keep_private(answers.path)
                stream.truncate(complete)
                answers._stream = stream
                try:
                    yield answers
                finally:
                    answers._sync()

    @classmethod
    def read(cls, folder: Path) -> "Answers":
        """The folder's answers so far; another run may be adding to them.

        Raises:
            PreselError: If a line of the file is malformed.
        """
        answers = cls(folder / "answers.jsonl")
        answers._read()
        return answers

    @property
    def cost(self) -> Cost:
        """Total cost of all answers, including those of earlier runs."""
        return Cost(self.tokens, self.money)

    def for_request(self, digest: str) -> list[Completion]:
        """All answers to the request with this digest, oldest first."""
        return self._found.get(digest, [])

    def cost_of(self, digest: str) -> Cost:
        """Cost of all answers to the request with this digest."""
        return self._costs.get(digest, Cost(0, 0.0))

    def of_cost_class(self, cost_class: str) -> list[list[Completion]]:
        """All answers of a cost class, grouped by request."""
        return [self._found[digest] for digest in sorted(self._kinds.get(cost_class, ()))]

    def unpriced(self, model: str) -> int:
        """Number of answers of a model that were bought while no prices were set."""
        return sum(count for kind, count in self._unpriced.items() if kind.startswith(f"{model}, "))

    def add(self, digest: str, name: str, raw: Completion | str, cost: Cost, cost_class: str = "") -> None:
        """Appends an answer to the file.

        Args:
            digest: Digest of the request.
            name: The image's id, for people who read the file.
            raw: The answer as received; text, truncated, if it is not a completion.
            cost: Its cost.
            cost_class: Model and prompt.

        Raises:
            PreselError: If it cannot be written.
        """
        assert self._stream is not None
        line = {
            "digest": digest,
            "id": name,
            "kind": cost_class,
            "tokens": cost.tokens,
            "money": cost.money,
            "raw": raw[:_MAX_TEXT] if isinstance(raw, str) else raw,
        }
        # A model's text may contain half of a surrogate pair.
        text = (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
        try:
            if self._stream.write(text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise PreselError(
                f"{self.path}: cannot write an answer ({error.strerror}); make room, then run the same "
                "command again: complete answers are kept"
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
        if not isinstance(line["digest"], str) or not isinstance(line.get("kind", ""), str):
            raise ValueError("'digest' or 'kind' is not text")
        self.tokens += line["tokens"]
        self.money += line["money"]
        before = self.cost_of(line["digest"])
        self._costs[line["digest"]] = Cost(before.tokens + line["tokens"], before.money + line["money"])
        if line["tokens"] and not line["money"]:
            self._unpriced[line.get("kind", "")] += 1
        if is_completion(line["raw"]):
            self._found[line["digest"]].append(line["raw"])
            self._kinds[line.get("kind", "")].add(line["digest"])

    def _read(self) -> int:
        """Reads the complete lines; returns their total size in bytes."""
        complete = 0
        if not self.path.exists():
            return complete
        check_file(self.path)
        with self.path.open("rb") as file:
            for number, text in enumerate(file):
                if not text.endswith(b"\n"):
                    break
                complete += len(text)
                try:
                    self._count(json.loads(text))
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise PreselError(
                        f"{self.path}: line {number + 1} is not an answer ({error}); restore the file, or "
                        "delete that line to request its image again"
                    ) from error
        return complete


def make_private(folder: Path) -> None:
    """Makes a folder that only its owner can read; removes others' permissions if it exists."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    keep_private(folder)


def keep_private(path: Path) -> None:
    """Removes others' permissions, if the file or folder belongs to this user."""
    status = path.stat()
    if status.st_uid == os.geteuid() and status.st_mode & 0o077:
        path.chmod(status.st_mode & 0o700)


def _open_private(path: str, flags: int) -> int:
    """Opens a file; a new one is readable by its owner only."""
    return os.open(path, flags, 0o600)


def _locked(folder: Path) -> AbstractContextManager[object]:
    """Locks a folder until the end of the caller's `with` block."""
    lock = FileLock(folder / "answers.lock")
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        _log.warning(f"waiting for another run that is adding answers to {folder}")
        return lock.acquire()
