"""Reads and writes LLaVA-format annotation files: a JSON list (or JSON Lines) of records."""

import json
import mmap
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from presel.data.checks import check_name, check_path, check_text, is_text, kind_of, shown
from presel.data.errors import OnError, RecordError, refuse
from presel.data.json_records import RepeatedKey, elements, is_json_lines
from presel.data.listing import Item, Listing
from presel.data.prompts import IMAGE_TOKEN, Turn
from presel.errors import PreselError
from presel.storage.files import atomic

# How records without an image are treated, see `LlavaFiles`: by all files, and by those that are trained on.
LeftOut = Literal["refuse", "drop", "drop_all"]
TextOnly = Literal[LeftOut, "keep"]
# The task of records without an image, whatever they say: tasks are what images are chosen from.
TEXT_ONLY = "text_only"

# Keys of other programs' formats (in lower case), and the LLaVA key in place of which they are used.
_OTHER_KEYS = {
    **dict.fromkeys(("image", "images", "img", "video", "videos", "file_name", "filename"), "image"),
    **dict.fromkeys((f"image_{what}" for what in ("path", "paths", "file", "name", "url")), "image"),
    **dict.fromkeys(("conversations", "messages", "query", "instruction"), "conversations"),
}
# `<image>` and its variants, such as `<Image>`, `<image_1>` and `<|image|>`.
_IMAGE_TOKENS = re.compile(r"<\|?image[ _]?\d*\|?>", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation about an image, about several, or about none.

    Attributes:
        id: Unique within its file.
        images: Posix paths relative to the image folder, in the order of their image tokens.
        task: The task whose budget the record is chosen from; `TEXT_ONLY` without an image.
        conversations: Questions and answers, alternating, an image token for each image among the questions.
        references: All reference answers of a benchmark's question, if it has several.
    """

    id: str
    images: tuple[str, ...]
    task: str
    conversations: tuple[Turn, ...]
    references: tuple[str, ...] = ()

    def paths(self, folder: Path) -> list[Path]:
        """Full paths of its images, in the image folder `folder`."""
        return [folder / image for image in self.images]


class TaskNamer(Protocol):
    """A rule that derives the task of a record."""

    def task_of(self, fields: Mapping[str, object], image: str) -> str:
        """The task of a record with these unchecked fields and this (first) image path.

        Raises:
            PreselError: If it has none.
        """


class Contents(NamedTuple):
    """The content of an annotation file.

    Attributes:
        records: The records in the file's order; those without an image only if they are kept.
        text_only: Number of records without one, which were skipped.
    """

    records: list[Record]
    text_only: int


@dataclass(frozen=True)
class TaskRule:
    """Takes a record's task from a field, or derives it from the image path.

    Attributes:
        field: The key that names the task; not read if `image_patterns` is given. None puts all records into
            one task, `all`.
        image_patterns: Regular expression searched for in the image path -> task; the first match counts.
    """

    field: str | None = "task"
    image_patterns: dict[str, str] | None = None

    def __post_init__(self) -> None:
        """Checks the patterns before any file is read."""
        if self.image_patterns is None:
            return
        if not self.image_patterns:
            raise PreselError("task patterns: there are none; give at least one, or name a field instead")
        for pattern, task in self.image_patterns.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise PreselError(
                    f"task patterns: {pattern!r} is not a regular expression ({error}); correct it"
                ) from None
            check_text(task, f"task patterns: the task of {pattern!r}", "name it")

    def task_of(self, fields: Mapping[str, object], image: str) -> str:
        """See `TaskNamer`; an error if the field is missing or blank, or no pattern matches."""
        if self.image_patterns is not None:
            for pattern, task in self.image_patterns.items():
                if re.search(pattern, image):
                    return task
            raise PreselError(
                f"'image' is {shown(image)}, which none of the task patterns matches; add a pattern for it"
            )
        if self.field is None:
            return "all"
        remedy = (
            "name the record's task there, give patterns that derive it from the image path (task_patterns), "
            "or have a pool's tasks found (pool.task_field=null tasks=discovered)"
        )
        return check_text(fields.get(self.field), f"'{self.field}'", remedy, "no task")


class LlavaFiles(NamedTuple):
    """A LLaVA-format annotation file and the folder its image paths are relative to.

    Attributes:
        annotations: A JSON list, or JSON Lines if the name ends in `.jsonl`; UTF-8.
        images: The folder.
        rule: Derives a record's task.
        numbered: Use a record's position in the file, from 0, in place of its `id`.
        text_only: How records without an image are treated: `refuse` makes them an error; `drop` skips them
            if none of their questions contains an image token; `drop_all` skips those as well; `keep` reads
            them, and skips those with an image token in any turn.
        group: The config group that error messages name, `pool` or `evaluation`.
        with_references: Read `references`, the list of all reference answers that a record with one question
            may have; the answer in its conversation counts only if the list repeats it.
    """

    annotations: Path
    images: Path
    rule: TaskNamer
    numbered: bool = False
    text_only: TextOnly = "refuse"
    group: str = "pool"
    with_references: bool = False

    def contents(self, on_error: OnError = refuse) -> Contents:
        """Reads the file record by record, and checks each; keys that a `Record` lacks are dropped.

        Args:
            on_error: Receives each error; if it returns, the other records are read. Records and turns are
                counted from 0.

        Raises:
            PreselError: If the file cannot be read.
        """
        records: list[Record] = []
        positions: dict[str, int] = {}
        dropped = kept = 0
        position = -1
        for position, fields in enumerate(elements(self.annotations, on_error)):
            try:
                text_only = self.text_only != "refuse" and _is_text_only(fields, self.text_only, self.group)
                if text_only and (self.text_only != "keep" or _image_token(fields, answers=True)):
                    dropped += 1
                    continue
                record = _record(fields, self, position, text_only)
                _check_first(record, positions, position, self.group)
            except PreselError as error:
                on_error(_placed(error, self.annotations, position, fields))
            else:
                records.append(record)
                kept += text_only
        if dropped + kept == position + 1:
            what = "records with an image" if dropped + kept else "records"
            reason = f"the file has no {what}; give one with at least one record"
            on_error(RecordError(reason, "no records", str(self.annotations)))
        return Contents(records, dropped)

    def records(self) -> list[Record]:
        """The records of `contents`."""
        return self.contents().records

    def listing(self, on_error: OnError = refuse) -> Listing:
        """The images of `contents`, without their text."""
        records, text_only = self.contents(on_error)
        items = [Item(one.id, one.images[0], one.task, one.images[1:]) for one in records if one.images]
        return Listing(items, text_only, kept=[one.id for one in records if not one.images])


def read_training_file(path: Path) -> list[Record]:
    """The records of a file that `write_records` wrote, which may be text alone or none at all."""

    def pass_over_none(error: RecordError) -> None:
        if error.kind != "no records":
            refuse(error)

    return LlavaFiles(path, path.parent, TaskRule(), text_only="keep").contents(pass_over_none).records


_STRING = rb'"(?:[^"\\]|\\.)*"'
# The value of a key "image", text or a list of texts; inside a text the quotes would be escaped.
_IMAGE = re.compile(rb'"image"\s*:\s*(%b|\[(?:[^\]"]|%b)*\])' % (_STRING, _STRING))


def image_paths(annotations: Path) -> list[str]:
    """The image paths in an annotation file, found by a search, which is faster than parsing.

    Values that `LlavaFiles.contents` will refuse are left out.
    """
    with annotations.open("rb") as file:
        if not annotations.stat().st_size:
            return []
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = {match[1] for match in _IMAGE.finditer(content)}
    paths: list[str] = []
    for text in found:
        with suppress(ValueError):
            image = json.loads(text)
            paths += [image] if isinstance(image, str) else [one for one in image if isinstance(one, str)]
    return paths


def training_fields(record: Record) -> dict[str, Any]:
    """A record as a training file holds it: `image` is one path, a list of several, or left out."""
    image = record.images[0] if len(record.images) == 1 else list(record.images)
    named = {"image": image} if image else {}
    return {"id": record.id, **named, "task": record.task, "conversations": record.conversations}


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Writes a LLaVA-format training file atomically; JSON Lines if its name ends in `.jsonl`.

    Raises:
        PreselError: If the file cannot be written.
    """
    opening, separator, closing = ("", "\n", "\n") if is_json_lines(path) else ("[\n", ",\n", "\n]\n")
    try:
        with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(opening)
            for position, record in enumerate(records):
                text = json.dumps(training_fields(record), ensure_ascii=False)
                stream.write((separator if position else "") + text)
            stream.write(closing)
    except OSError as error:
        raise PreselError(
            f"{path}: the file cannot be written ({error.strerror}); check the folder and the space left"
        ) from error


# Checks of records raise the reason; `_placed` adds the file and the record.


def _placed(error: PreselError, annotations: Path, position: int, fields: object) -> RecordError:
    kind = error.kind if isinstance(error, RecordError) else "no task"
    image = fields.get("image") if isinstance(fields, dict) else None
    return RecordError(str(error), kind, f"{annotations}: {_name(position, fields)}", image)


def _check_first(record: Record, positions: dict[str, int], position: int, group: str) -> None:
    first = positions.setdefault(record.id, position)
    if first != position:
        raise RecordError(
            f"'id' is already that of record {first}; give every record an id of its own, or use their "
            f"positions ({group}.ids=position)",
            "repeated id",
        )


def _is_text_only(fields: object, text_only: TextOnly, group: str) -> bool:
    """Whether a record has no image, and no sign that it should have one."""
    if not isinstance(fields, dict) or not _is_blank(fields.get("image")):
        return False
    _check_keys(fields)
    if text_only == "drop" and (token := _image_token(fields)):
        raise RecordError(
            f"a question contains {token}, and 'image' is missing; name the image there, or set "
            f"{group}.text_only=drop_all if questions may contain such text",
            "no image",
        )
    return True


def _is_blank(value: object) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _image_token(fields: object, answers: bool = False) -> str | None:
    """The first image token in the questions of an unchecked record, or also in its answers."""
    conversations = fields.get("conversations") if isinstance(fields, dict) else None
    for turn in conversations if isinstance(conversations, list) else []:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            continue
        found = _IMAGE_TOKENS.search(turn["value"])
        if found and (answers or turn.get("from") != "gpt"):
            return found.group()
    return None


def _check_keys(fields: Mapping[str, object]) -> None:
    """Checks that no key is repeated, and none is another format's in place of LLaVA's."""
    if isinstance(fields, RepeatedKey):
        where = fields.place or "the record"
        raise RecordError(f"{where} has {shown(fields.key)} more than once; leave it once", "repeated key")
    # The fast path: there are millions of records.
    if not (_is_blank(fields.get("image")) or _is_blank(fields.get("conversations"))):
        return
    others = [
        f"'{key}' ({kind_of(value)}) in place of '{ours}'"
        for key, value in fields.items()
        if (ours := _OTHER_KEYS.get(key.lower())) and _is_blank(fields.get(ours)) and not _is_blank(value)
    ]
    if others:
        raise RecordError(
            f"the record has {' and '.join(others)} (LLaMA-Factory's, ms-swift's or another format); "
            "name the images under 'image' and write the turns under 'conversations', as LLaVA does",
            "format of another program",
        )


def _record(fields: object, file: LlavaFiles, position: int, text_only: bool) -> Record:
    if not isinstance(fields, dict):
        raise RecordError(
            f"the record is {kind_of(fields)}, not an object; remove it or write it as one", "not an object"
        )
    _check_keys(fields)
    if file.numbered:
        identifier = str(position)
    else:
        identifier = check_name(
            fields.get("id"),
            "'id'",
            f"give every record an id of its own, or use their positions ({file.group}.ids=position)",
            "no id",
        )
    images = () if text_only else _images(fields, file.group)
    task = file.rule.task_of(fields, images[0]) if images else TEXT_ONLY
    conversations = _conversations(fields.get("conversations"))
    if images:
        _check_image_tokens(conversations, len(images))
    references = _references(fields.get("references"), conversations) if file.with_references else ()
    return Record(identifier, images, task, conversations, references)


def _images(fields: Mapping[str, object], group: str) -> tuple[str, ...]:
    value = fields.get("image")
    # Where the text shows an image, only `drop_all` takes the record for one without.
    skipped = "drop_all" if _is_blank(value) and _image_token(fields) else "drop"
    remedy = f"name one image file, or skip text-only records ({group}.text_only={skipped})"
    named: list[tuple[str, object]] = [("'image'", None if value == [] else value)]
    if isinstance(value, list) and value:
        remedy = "name an image file in each place of the list"
        named = [(f"'image' entry {place}", one) for place, one in enumerate(value)]
    return tuple(check_path(check_text(one, name, remedy, "no image"), name) for name, one in named)


def _name(position: int, fields: object) -> str:
    identifier = fields.get("id") if isinstance(fields, dict) else None
    return f"record {position}" if identifier is None else f"record {position} (id {shown(identifier)})"


def _conversations(value: object) -> tuple[Turn, ...]:
    turns = read_turns(value, "give the record a question and an answer")
    if turns[-1]["from"] != "gpt":
        raise RecordError(
            "'conversations' has no answer at its end; add a 'gpt' turn or remove the record", "no answer"
        )
    return turns


def check_conversation(record: Record) -> None:
    """Checks a conversation that was not read from a file, such as an own provider's.

    Raises:
        RecordError: If it has no questions and answers in turn, or not one `<image>` for each image.
    """
    turns = _conversations(list(record.conversations))
    if record.images:
        _check_image_tokens(turns, len(record.images))


def read_turns(value: object, remedy: str) -> tuple[Turn, ...]:
    """Checks the turns of a record, whose last answer may be missing; the `remedy` is for one without any.

    Raises:
        RecordError: If they are not questions and answers in turn.
    """
    if value is None:
        raise RecordError(f"'conversations' is missing; {remedy}", "no conversation")
    if not isinstance(value, list):
        raise RecordError(f"'conversations' is {kind_of(value)}; write a list of turns", "no conversation")
    if not value:
        raise RecordError(f"'conversations' is empty; {remedy}", "no conversation")
    return tuple(_turn(position, fields) for position, fields in enumerate(value))


def _turn(position: int, fields: object) -> Turn:
    if not isinstance(fields, dict):
        raise RecordError(
            f"'conversations' turn {position} is {kind_of(fields)}; write an object", "bad turn"
        )
    role = fields.get("from")
    if role != "human" and role != "gpt":
        fault = (
            f"the unknown role {shown(role)}" if "from" in fields else f"no 'from', but {shown([*fields])}"
        )
        raise RecordError(
            f"'conversations' turn {position} has {fault}; "
            "write 'from': 'human' for a question, 'gpt' for an answer",
            "unknown role",
        )
    expected: Literal["human", "gpt"] = "gpt" if position % 2 else "human"
    if role != expected:
        raise RecordError(
            f"'conversations' turn {position} is from {role!r} instead of {expected!r}; "
            "alternate the turns, a human turn first",
            "turns out of order",
        )
    name = "question" if role == "human" else "answer"
    value = fields.get("value")
    # Checked first, so that the message is built only if needed: there are millions of turns.
    if not is_text(value):
        where = f"'conversations' turn {position} 'value'"
        value = check_text(value, where, f"write the {name} there", f"no {name}")
    # Literals, not the file's strings, so that millions of turns share their keys and roles.
    return {"from": expected, "value": value}


def _references(value: object, turns: tuple[Turn, ...]) -> tuple[str, ...]:
    if value is None:
        return ()
    texts = [text for text in value if is_text(text)] if isinstance(value, list) else []
    if not isinstance(value, list) or not value or len(texts) < len(value):
        raise RecordError(
            f"'references' is {shown(value)}; write a list of reference answers, or leave it out",
            "bad references",
        )
    if len(turns) > 2:
        raise RecordError(
            f"'references' is given for {len(turns) // 2} questions; write a record for each of them",
            "bad references",
        )
    return tuple(texts)


def _check_image_tokens(turns: tuple[Turn, ...], images: int) -> None:
    in_questions = sum(turn["value"].count(IMAGE_TOKEN) for turn in turns[::2])
    in_answers = sum(turn["value"].count(IMAGE_TOKEN) for turn in turns[1::2])
    if in_questions == images and not in_answers:
        return
    remedy = (
        f"put {IMAGE_TOKEN} once into one question, as LLaVA does, or list an image for each under 'image'"
        if images == 1
        else f"put one into a question for each of the {images} images under 'image', in their order"
    )
    if not in_questions:
        kind = f"no {IMAGE_TOKEN}"
        raise RecordError(f"'conversations' has {kind} in any question; {remedy}", kind)
    kind = f"several {IMAGE_TOKEN}" if images == 1 else f"more or fewer {IMAGE_TOKEN} than images"
    raise RecordError(f"'conversations' has {in_questions + in_answers} {IMAGE_TOKEN}; {remedy}", kind)
