"""Answers that were paid for, written down the moment they come: none is ever asked for twice."""

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from filelock import FileLock

from presel.errors import PreselError

# A chat completion as OpenAI-compatible servers give it.
Completion = dict[str, Any]


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
        """Reads what earlier runs paid for; use `opened` instead."""
        self.path = file
        self.tokens = 0
        self.money = 0.0
        self._found: dict[str, list[Completion]] = defaultdict(list)
        self._stream: TextIO | None = None

    @classmethod
    @contextmanager
    def opened(cls, folder: Path) -> Iterator["Answers"]:
        """Holds the folder's answers for this process alone; another run waits until they are closed.

        Raises:
            PreselError: If the file holds something else.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "answers.lock"):
            answers = cls(folder / "answers.jsonl")
            answers._read()
            # What a model writes may hold half of a surrogate pair.
            with answers.path.open("a", encoding="utf-8", errors="surrogatepass") as stream:
                answers._stream = stream
                yield answers

    def to(self, asked: str) -> list[Completion]:
        """All answers to what has this digest, oldest first."""
        return self._found.get(asked, [])

    def add(self, asked: str, name: str, completion: Completion, spent: Spent) -> None:
        """Writes an answer down.

        Args:
            asked: Digest of what was asked.
            name: The image's id, for whoever reads the file.
            completion: The raw answer.
            spent: What it cost.
        """
        assert self._stream is not None
        line = {"asked": asked, "id": name, "tokens": spent.tokens, "money": spent.money, "raw": completion}
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()
        self._count(line)

    def _count(self, line: dict[str, Any]) -> None:
        self.tokens += line["tokens"]
        self.money += line["money"]
        self._found[line["asked"]].append(line["raw"])

    def _read(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            whole = 0
            for number, text in enumerate(file):
                if not text.endswith(b"\n"):
                    file.truncate(whole)
                    break
                whole += len(text)
                try:
                    self._count(json.loads(text))
                except (ValueError, KeyError, TypeError) as error:
                    raise PreselError(
                        f"{self.path}: line {number + 1} is no answer ({error}); restore the file, or delete "
                        "that line and have its image asked for again"
                    ) from error
