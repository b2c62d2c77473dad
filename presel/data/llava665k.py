"""LLaVA-1.5's mixture of 665,298 records; their tasks are derived from image folder and wording."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from presel.component import component
from presel.data.checks import shown
from presel.data.llava import TaskNamer, TextOnly
from presel.data.sources import LlavaJson
from presel.errors import PreselError

# Records of each task in `llava_v1_5_mix665k.json`, by LLaVA's authors (haotian-liu/LLaVA, issue 702).
EXPECTED: Mapping[str, int] = {
    "vqav2": 82783,
    "ok_vqa": 8998,
    "a_okvqa": 66160,
    "refcoco": 48447,
    "conversation": 57669,
    "detail": 23240,
    "reasoning": 76803,
    "gqa": 72140,
    "ocr_vqa": 80000,
    "textcaps": 21953,
    "vg": 86417,
}

_BY_FOLDER = {"gqa": "gqa", "ocr_vqa": "ocr_vqa", "textvqa": "textcaps", "vg": "vg"}
_OPTION_LETTER = "Answer with the option's letter from the given choices directly."
_SHORT_ANSWER = "Answer the question using a single word or phrase."
_REGION = (
    "Please provide a short description for this region",
    "Please provide the bounding box coordinate of the region this sentence describes",
)
# The questions of detail_23k, and the list in LLaVA's paper; compared without final punctuation.
_DETAIL = frozenset(
    {
        "analyze the image in a comprehensive and detailed manner",
        "break down the elements of the image in a detailed manner",
        "can you describe the main features of this image for me",
        "can you elaborate on the elements of the picture provided",
        "characterize the image using a well-detailed description",
        "clarify the contents of the displayed image with great detail",
        "describe the following image",
        "describe the following image in detail",
        "describe the following scene",
        "examine the image closely and share its details",
        "explain the various aspects of the image before you",
        "explain the visual content of the image in great detail",
        "give an elaborate explanation of the image you see",
        "illustrate the image through a descriptive explanation",
        "narrate the contents of the image with precision",
        "offer a thorough analysis of the image",
        "portray the image with a rich, descriptive narrative",
        "provide a detailed description of the given image",
        "share a comprehensive rundown of the presented image",
        "walk through the important details of the image",
        "what are the key elements in this picture",
        "what do you see happening in this image",
        "what do you think is going on in this snapshot",
        "what is this photo about",
        "write a detailed description of the given image",
        "write an exhaustive depiction of the given image",
    }
)


@dataclass(frozen=True)
class Llava665kTasks(TaskNamer):
    """Derives the task of a record of the mixture.

    Attributes:
        groups: The group of each task that is merged into one.
    """

    groups: Mapping[str, str] = field(default_factory=dict)

    def task_of(self, fields: Mapping[str, object], image: str) -> str:
        """The record's task, or the task's group.

        Raises:
            PreselError: If the image is in none of the mixture's folders, or there is no question.
        """
        folder = image.split("/")[0]
        if folder == "coco":
            task = _coco_task(_questions(fields))
        elif folder in _BY_FOLDER:
            task = _BY_FOLDER[folder]
        else:
            raise PreselError(
                f"'image' is {shown(image)}, in none of LLaVA-665K's folders coco, {', '.join(_BY_FOLDER)}; "
                "name the tasks yourself with pool=llava_json"
            )
        return self.groups.get(task, task)


def _questions(fields: Mapping[str, object]) -> list[str]:
    turns = fields.get("conversations")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise PreselError("'conversations' has no turns; give the record a question and an answer")
    return [str(turn.get("value")) for turn in turns[::2]]


def _coco_task(questions: list[str]) -> str:
    first = questions[0]
    if _OPTION_LETTER in first:
        return "a_okvqa"
    if _SHORT_ANSWER in first:
        # VQAv2 has at least three questions an image, all in one record; OK-VQA one.
        return "vqav2" if len(questions) > 1 else "ok_vqa"
    if any(wording in first for wording in _REGION):
        return "refcoco"
    if len(questions) > 1:
        return "conversation"
    question = first.replace("<image>", "").strip().rstrip(".?'\"").lower()
    return "detail" if question in _DETAIL else "reasoning"


@component
class Llava665k(LlavaJson):
    """LLaVA-1.5's visual instruction tuning data: `llava_v1_5_mix665k.json` and its image folders.

    Its ids are not unique, so that positions are used instead. Records without an image are chats, some of
    them about markup; unless they are kept, all are skipped, even if a question contains `<image>`.

    Attributes:
        groups: Tasks that are merged into one for the selection, by the group's name.
    """

    groups: dict[str, list[str]]
    ids: Literal["field", "position"] = "position"
    text_only: TextOnly = "drop_all"

    def __post_init__(self) -> None:
        """Checks the groups."""
        grouped = Counter(task for tasks in self.groups.values() for task in tasks)
        unknown = sorted(grouped.keys() - EXPECTED.keys())
        if unknown:
            raise ValueError(f"groups: there is no task {unknown[0]!r}; choose of {', '.join(EXPECTED)}")
        twice = [task for task, times in grouped.items() if times > 1]
        if twice:
            raise ValueError(f"groups: task {twice[0]!r} is in two groups; leave it in one")

    @property
    def tasks(self) -> TaskNamer:
        """Folder and wording."""
        return Llava665kTasks({task: group for group, tasks in self.groups.items() for task in tasks})
