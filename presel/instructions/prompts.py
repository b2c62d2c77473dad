"""The prompts that models are asked to write instructions with, and the parsing of their answers."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Any

from pydantic import Field

from presel.component import component
from presel.data.prompts import IMAGE_TOKEN, Turn, as_turns
from presel.errors import PreselError

_SURROGATE = re.compile("[\ud800-\udfff]")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_FENCED = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?```\s*\Z", re.DOTALL)


class UnusableAnswer(Exception):
    """An answer that contains no valid instruction; the message is the reason: `kind`, or `kind: detail`."""


@component
class Prompt:
    """The prompt for one kind of instruction.

    Attributes:
        request: User message sent with the image; `{task}` stands for the image's task, `{question}` for the
            question.
        system: System message; empty for none.
        questions: The training questions; each image gets one, chosen by its id. Empty if the model writes
            the questions too, and answers with a JSON list of objects with `question` and `answer`.
        suffix: Appended to every question in the training file, on its own line.
        answer_pattern: Regular expression that every complete answer must match.
        max_turns: Maximum number of questions of a conversation.
        max_tokens: Maximum length of the model's answer; a truncated answer is unusable.
    """

    request: Annotated[str, Field(min_length=1)]
    system: str = ""
    questions: list[str] = field(default_factory=list)
    suffix: str = ""
    answer_pattern: str = ".+"
    max_turns: Annotated[int, Field(ge=1)] = 1
    max_tokens: Annotated[int, Field(ge=1, le=10**9)] = 512

    def __post_init__(self) -> None:
        """Checks what would otherwise fail after answers are paid for."""
        try:
            re.compile(self.answer_pattern)
        except re.error as error:
            raise ValueError(
                f"answer_pattern {self.answer_pattern!r} is not a regular expression ({error})"
            ) from None
        for name in _PLACEHOLDER.findall(self.request):
            if name != "task" and not (name == "question" and self.questions):
                raise ValueError(
                    f"request contains {{{name}}}, which has no value; there are {{task}} and, if questions "
                    "are given, {question}"
                )

    def messages(self, name: str, task: str) -> list[dict[str, str]]:
        """The chat messages for an image of this id and task, without the image."""
        request = self.request.replace("{task}", task).replace("{question}", self._question(name))
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": request}]

    def conversation(self, name: str, text: str, images: int = 1) -> tuple[Turn, ...]:
        """Turns a model's answer about an image, or about several, into the conversation to train on.

        Raises:
            UnusableAnswer: If the answer is blank, malformed, or does not match `answer_pattern`.
        """
        if not text.strip():
            raise UnusableAnswer("blank answer")
        pairs = [(self._question(name), text.strip())] if self.questions else _pairs(text)
        if len(pairs) > self.max_turns:
            raise UnusableAnswer(f"too many questions: {len(pairs)}, max_turns is {self.max_turns}")
        for _, answer in pairs:
            if not re.fullmatch(self.answer_pattern, answer, re.DOTALL):
                raise UnusableAnswer(f"does not match {self.answer_pattern!r}: {answer[:40]!r}")
        suffix = f"\n{self.suffix}" if self.suffix else ""
        return checked_turns([(question + suffix, answer) for question, answer in pairs], images)

    def _question(self, name: str) -> str:
        """The question of an image: chosen by its id, so that the pool's order does not matter."""
        if not self.questions:
            return ""
        return self.questions[int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(self.questions)]


@component
class Prompts:
    """The prompt of each task.

    Attributes:
        kinds: Prompts by name.
        default: Name of the prompt of every task that is not in `by_task`.
        by_task: Name of the prompt by task; None to use the default for all.
    """

    kinds: dict[str, Prompt]
    default: str
    by_task: dict[str, str] | None = None

    def __post_init__(self) -> None:
        """Checks the names."""
        for name in [self.default, *(self.by_task or {}).values()]:
            if name not in self.kinds:
                raise ValueError(f"there is no prompt {name!r}; choose one of {', '.join(self.kinds)}")

    def of(self, task: str) -> Prompt:
        """The prompt of a task."""
        return self.kinds[self.name_of(task)]

    def name_of(self, task: str) -> str:
        """Name of the prompt of a task."""
        return (self.by_task or {}).get(task, self.default)

    def check(self, tasks: Sequence[str]) -> None:
        """Raises `PreselError` unless the pool has every task of `by_task`."""
        for task in self.by_task or {}:
            if task not in tasks:
                raise PreselError(
                    f"instructions.prompts.by_task names '{task}', which is not a task of the pool; there "
                    f"are {', '.join(tasks)}"
                )


def checked_turns(pairs: Sequence[tuple[str, str]], images: int = 1) -> tuple[Turn, ...]:
    """Questions and answers about images as a conversation that starts with an image token for each.

    Raises:
        UnusableAnswer: If a text contains the image token, or half of a surrogate pair.
    """
    for question, answer in pairs:
        if IMAGE_TOKEN in question or IMAGE_TOKEN in answer:
            raise UnusableAnswer(f"it contains the image token {IMAGE_TOKEN}")
        if _SURROGATE.search(question + answer):
            raise UnusableAnswer("it contains half of a surrogate pair, which is not a character")
    return tuple(as_turns(pairs, images))


def _pairs(text: str) -> list[tuple[str, str]]:
    """The questions and answers of a JSON list, possibly inside a fenced code block."""
    fenced = _FENCED.match(text)
    try:
        found = json.loads(fenced.group(1) if fenced else text)
    # RecursionError: thousands of nested brackets.
    except (ValueError, RecursionError) as error:
        raise UnusableAnswer(f"not JSON ({error})") from None
    if not isinstance(found, list) or not found:
        raise UnusableAnswer("not a JSON list of questions and answers")
    return [(_text(pair, "question"), _text(pair, "answer")) for pair in found]


def _text(pair: Any, key: str) -> str:
    value = pair.get(key) if isinstance(pair, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise UnusableAnswer(f"a pair without '{key}'")
    return value.strip()
