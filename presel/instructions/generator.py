"""Base class of models that write instructions: digests of requests, and usable and unusable answers."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from presel.component import component
from presel.data.listing import PoolFiles
from presel.data.llava import Record
from presel.instructions.answers import Answers, Completion, is_final_error
from presel.instructions.prompts import Prompts, UnusableAnswer
from presel.instructions.provider import InstructionProvider, InstructionRequest, ProviderResult

# Verbose regular expressions, matched against text with plain apostrophes and single spaces.
_SORRY = r"""
    I(?: 'm | \sam )\s(?: (?: very | so | really | truly )\s )?sorry
  | (?: Sorry | (?: My\s )?Apologies ),\s(?: but\s )?I
  | I\sapologi[sz]e
"""
_CANNOT = r"""
    I(?: \s(?: can't | can\s?not | won't | will\snot )(?: \sbe\sable\sto )?
       | (?: 'm | \sam )(?: \scurrently )?\s(?: unable | not\sable )\sto )
"""
# What a refusal cannot do; "I can't see any dogs in it" and "I can't help but smile" are answers.
_SERVE = r"""
    help(?! \sbut\b ) | assist | provide | comply | fulfil+ | respond | answer | identify | recogni[sz]e
  | describe | discuss | engage | continue | generate | create | write | share | process | analy[sz]e
  | view | access | see\s(?: the\s | this\s | your\s )?images? | do\s(?: that | this | so )
"""
_REFUSAL = re.compile(
    rf"""
    (?: {_SORRY}
      | As\san\s(?: AI | artificial\sintelligence )\b [^.]* \b {_CANNOT}
      | (?: Unfortunately,?\s | I'm\safraid\s(?: that\s )? )? {_CANNOT} \s(?: \w+ly\s )? (?: {_SERVE} )
    )\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
_MAX_REASON = 300
_THINK, _THINK_END = "<think>", "</think>"


@component
class Generator(InstructionProvider):
    """Base class of models that write instructions.

    Attributes:
        model: The model's name.
        prompts: The prompt of each task.
        temperature: Sampling temperature.
        attempts: Maximum number of answers requested for an image while they are malformed.
        answers: Folder that keeps every answer, shared by all runs.
        version: Raised when the same answers are parsed into other instructions.
    """

    version: ClassVar[int] = 2

    model: Annotated[str, Field(min_length=1)]
    prompts: Prompts
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.2
    attempts: Annotated[int, Field(ge=1)] = field(default=2, compare=False)
    answers: Path = field(compare=False)

    def check(self, files: PoolFiles, tasks: Sequence[str]) -> None:
        """Checks that the pool has all tasks that prompts are assigned to."""
        self.prompts.check(tasks)

    def body(self, image: InstructionRequest) -> dict[str, Any]:
        """The request for an image as JSON, without the image itself."""
        prompt = self.prompts.of(image.task)
        return {
            "model": self.model,
            "messages": prompt.messages(image.id, image.task),
            "temperature": self.temperature,
            "max_tokens": prompt.max_tokens,
        }

    def request_digest(self, image: InstructionRequest) -> str:
        """SHA-256 of everything that decides the answer: the record's id, its images' bytes, the request."""
        text = json.dumps([image.id, image.content, self.body(image)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def open_requests(
        self, requests: Sequence[InstructionRequest], answers: Answers
    ) -> list[InstructionRequest]:
        """The images without a usable answer or a refusal, and with attempts left."""
        open_ = []
        for image in requests:
            completions = answers.for_request(self.request_digest(image))
            if len(completions) < self.attempts and self._all_malformed(image, completions):
                open_.append(image)
        return open_

    def results(self, requests: Sequence[InstructionRequest], answers: Answers) -> ProviderResult:
        """Parses the answers into instructions, or gives the reason why there is none."""
        records: list[Record] = []
        unanswered: dict[str, str] = {}
        for image in requests:
            reason = "never answered"
            for completion in answers.for_request(self.request_digest(image)):
                try:
                    records.append(self._record(image, completion))
                    break
                except UnusableAnswer as error:
                    reason = str(error)
            else:
                unanswered[image.id] = reason
        return ProviderResult(records, unanswered)

    def retry_remedy(self, unanswered: Sequence[InstructionRequest]) -> str:
        """Names the number of attempts that requests another answer for malformed ones only."""
        answers = Answers.read(self.answers)
        malformed = []
        for image in unanswered:
            completions = answers.for_request(self.request_digest(image))
            if completions and self._all_malformed(image, completions):
                malformed.append(len(completions))
        if not malformed:
            return ""
        return (
            f"run the same command with instructions.attempts={max(malformed) + 1} to request another answer "
            f"for each of the {len(malformed)} images with malformed ones"
        )

    def _all_malformed(self, image: InstructionRequest, completions: Sequence[Completion]) -> bool:
        """Whether no answer is usable, and none is a refusal, which ends the attempts."""
        for completion in completions:
            try:
                self._record(image, completion)
            except Refusal:
                return False
            except UnusableAnswer:
                continue
            return False
        return True

    def _record(self, image: InstructionRequest, completion: Completion) -> Record:
        prompt = self.prompts.of(image.task)
        conversation = prompt.conversation(image.id, text_of(completion), len(image.files))
        for turn in conversation:
            if turn["from"] == "gpt":
                _check_no_refusal(turn["value"])
        return image.record(conversation)


class Refusal(UnusableAnswer):
    """The model refuses to answer; its image is not requested again."""


def text_of(completion: Completion) -> str:
    """The text of a chat completion, without the reasoning before it.

    Raises:
        UnusableAnswer: If it is an error, malformed, blank, truncated or a refusal.
    """
    try:
        choice = completion["choices"][0]
        content, finish = choice["message"].get("content"), choice.get("finish_reason")
        refusal = choice["message"].get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        error = completion.get("error") if isinstance(completion, dict) else None
        if error and is_final_error(completion):
            raise Refusal(f"refused: {error.get('message') or error}"[:_MAX_REASON]) from None
        reason = f"error: {error}" if error else "not a chat completion"
        raise UnusableAnswer(reason[:_MAX_REASON]) from None
    if refusal or finish == "content_filter":
        raise Refusal(f"refused: {refusal or 'content filter'}"[:_MAX_REASON])
    if finish == "length":
        raise UnusableAnswer("cut off at max_tokens")
    text = _without_thoughts(_joined(content))
    if not text.strip():
        raise UnusableAnswer("blank answer")
    _check_no_refusal(text)
    return text


def _joined(content: Any) -> str:
    """The text of a message, whose content may be a list of parts."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(text for text in texts if isinstance(text, str))


def _without_thoughts(text: str) -> str:
    """Removes the reasoning, inside `<think>` tags, that a text may begin with."""
    before, end, after = text.partition(_THINK_END)
    opened = before.lstrip().startswith(_THINK)
    if opened and not end:
        raise UnusableAnswer("unfinished reasoning")
    # Some chat templates contain the opening tag, so that the answer has the closing one only.
    return after if opened or (end and _THINK not in before) else text


def _check_no_refusal(text: str) -> None:
    words = " ".join(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
    if _REFUSAL.match(words):
        raise Refusal(f"refused: {words[:80]}")
