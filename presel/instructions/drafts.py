"""Questions, or whole instructions, that are written beforehand for people to answer or correct."""

from pathlib import Path
from typing import NamedTuple

from presel.data.checks import check_name, kind_of
from presel.data.errors import RecordError
from presel.data.json_records import elements
from presel.data.llava import read_turns
from presel.data.prompts import IMAGE_TOKEN
from presel.errors import PreselError


class Draft(NamedTuple):
    """What is written beforehand about an image.

    Attributes:
        questions: The questions, without image tokens.
        answers: Their answers; that of the last question may be missing.
    """

    questions: list[str]
    answers: list[str]


def read_drafts(file: Path) -> dict[str, Draft]:
    """Reads drafts, by the ids of their images.

    Args:
        file: LLaVA-format records, of which `id` and `conversations` are read: a JSON list, or JSON Lines if
            the name ends in `.jsonl`. The training file of a run is one.

    Raises:
        PreselError: If the file or a record cannot be read.
    """
    drafts: dict[str, Draft] = {}
    for position, fields in enumerate(elements(file)):
        try:
            if not isinstance(fields, dict):
                raise RecordError(f"it is {kind_of(fields)}, not an object; write 'id' and 'conversations'")
            name = check_name(fields.get("id"), "'id'", "name the image that the draft is about")
            if name in drafts:
                raise RecordError(f"it is the second draft of image '{name}'; leave one")
            turns = read_turns(fields.get("conversations"), "give the record a question")
            texts = [turn["value"].replace(IMAGE_TOKEN, "").strip() for turn in turns]
            drafts[name] = Draft(texts[::2], texts[1::2])
        except PreselError as error:
            raise RecordError(str(error), place=f"{file}: record {position}") from error
    return drafts
