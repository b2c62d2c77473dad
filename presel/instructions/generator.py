"""What all models that write instructions share: who is asked what, and what becomes of the answers."""

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
from presel.instructions.provider import InstructionProvider, Revealed, Wanted

# In these, white space says nothing and \s is a space; they read text with plain apostrophes.
_SORRY = r"""
    I(?: 'm | \sam )\s(?: (?: very | so | really | truly )\s )?sorry
  | (?: Sorry | (?: My\s )?Apologies ),\s(?: but\s )?I
  | I\sapologi[sz]e
"""
_CANNOT = r"""
    I(?: \s(?: can't | can\s?not | won't | will\snot )(?: \sbe\sable\sto )?
       | (?: 'm | \sam )(?: \scurrently )?\s(?: unable | not\sable )\sto )
"""
# "I can't see any dogs in it" and "I can't help but smile" are answers.
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
_THOUGHTS, _THOUGHTS_END = "<think>", "</think>"


@component
class Generator(InstructionProvider):
    """Base of models that write instructions.

    Attributes:
        model: Its name.
        prompts: What it is asked, by task.
        temperature: Its sampling temperature.
        attempts: How often an image is asked before its malformed answers are given up.
        answers: Folder that keeps every answer, for all runs.
        version: Raised when other instructions come to be made of the same answers.
    """

    version: ClassVar[int] = 2

    model: Annotated[str, Field(min_length=1)]
    prompts: Prompts
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.2
    attempts: Annotated[int, Field(ge=1)] = field(default=2, compare=False)
    answers: Path = field(compare=False)

    def check(self, files: PoolFiles, tasks: Sequence[str]) -> None:
        """Makes sure that prompts are for tasks that there are."""
        self.prompts.check(tasks)

    def body(self, image: Wanted) -> dict[str, Any]:
        """What the model is asked about an image, the image left out."""
        prompt = self.prompts.of(image.task)
        return {
            "model": self.model,
            "messages": prompt.messages(image.id, image.task),
            "temperature": self.temperature,
            "max_tokens": prompt.max_tokens,
        }

    def asked(self, image: Wanted) -> str:
        """Digest of what is asked: of the image's name, its bytes and the words."""
        text = json.dumps([image.id, image.content, self.body(image)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def unsettled(self, wanted: Sequence[Wanted], answers: Answers) -> list[Wanted]:
        """The images that are still to be asked about."""
        return [image for image in wanted if self._is_open(image, answers.to(self.asked(image)))]

    def settled(self, wanted: Sequence[Wanted], answers: Answers) -> Revealed:
        """Makes instructions of the answers, or tells why there is none."""
        records: list[Record] = []
        unanswered: dict[str, str] = {}
        for image in wanted:
            reason = "never answered"
            for completion in answers.to(self.asked(image)):
                try:
                    records.append(self._record(image, completion))
                    break
                except UnusableAnswer as error:
                    reason = str(error)
            else:
                unanswered[image.id] = reason
        return Revealed(records, unanswered)

    def _is_open(self, image: Wanted, completions: Sequence[Completion]) -> bool:
        if len(completions) >= self.attempts:
            return False
        for completion in completions:
            try:
                self._record(image, completion)
            except Refusal:
                return False
            except UnusableAnswer:
                continue
            return False
        return True

    def _record(self, image: Wanted, completion: Completion) -> Record:
        conversation = self.prompts.of(image.task).conversation(image.id, text_of(completion))
        for turn in conversation:
            if turn["from"] == "gpt":
                _check_willing(turn["value"])
        return Record(image.id, image.image, image.task, conversation)


class Refusal(UnusableAnswer):
    """The model would not answer; it is not asked again."""


def text_of(completion: Completion) -> str:
    """The text of a chat completion, without the thoughts that went before it.

    Raises:
        UnusableAnswer: If it is none, an error, was cut off, or refuses.
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
    _check_willing(text)
    return text


def _joined(content: Any) -> str:
    """The text of a message, which may come in parts."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(text for text in texts if isinstance(text, str))


def _without_thoughts(text: str) -> str:
    """What comes after the thoughts that a text begins with, if it does."""
    before, end, after = text.partition(_THOUGHTS_END)
    opened = before.lstrip().startswith(_THOUGHTS)
    if opened and not end:
        raise UnusableAnswer("only thoughts")
    # Some chat templates open the thoughts themselves, so that the answer holds their end alone.
    return after if opened or (end and _THOUGHTS not in before) else text


def _check_willing(text: str) -> None:
    """Makes sure that a text is no refusal.

    Raises:
        Refusal: If it is.
    """
    words = " ".join(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
    if _REFUSAL.match(words):
        raise Refusal(f"refused: {words[:80]}")
