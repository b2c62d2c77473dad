"""People who write instructions in Label Studio."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn
from urllib.parse import quote

from presel.component import component
from presel.console import console
from presel.data.json_records import elements
from presel.data.listing import PoolFiles, RecordError
from presel.data.llava import Record
from presel.data.prompts import Turn
from presel.errors import Paused, PreselError
from presel.instructions.answers import Answers, Spent
from presel.instructions.orders import Order, Request, folder_for, listed, place, placed
from presel.instructions.pictures import data_url, read_image
from presel.instructions.prompts import UnusableAnswer, as_turns
from presel.instructions.provider import InstructionProvider, Revealed, Wanted
from presel.storage.files import atomic

_TASKS = "tasks.json"
_EXPORT = "export.json"
_INTERFACE_FILE = "config.xml"
# Side by side: below an image as large as the page, one would scroll to the question of every task.
_INTERFACE = """<View style="display: flex; gap: 24px">
  <View style="flex: 3; min-width: 0">
    <Image name="image" value="$image" zoom="true"/>
  </View>
  <View style="flex: 2; min-width: 0">
    <Header value="$task"/>
    <Header size="5" value="Question; Enter begins another"/>
    <TextArea name="question" toName="image" editable="true" required="true"/>
    <Header size="5" value="Answer; with several questions, one for each, in their order"/>
    <TextArea name="answer" toName="image" rows="3" editable="true" required="true"/>
  </View>
</View>
"""
_EXPORT_AS_JSON = "export from Label Studio as JSON (not JSON-MIN or CSV)"

# An annotation as Label Studio exports it.
_Annotation = dict[str, Any]


class _Exported(NamedTuple):
    """A task as it comes back.

    Attributes:
        uid: The image's name in the pool.
        digest: Of the image.
        annotations: What people wrote: starred ones first, then the oldest.
    """

    uid: str
    digest: str
    annotations: list[_Annotation]

    def name_in(self, order: Order) -> str:
        """The image's name, unless it is another picture of that name."""
        request = order.requests.get(self.uid)
        same = request is None or self.digest == request.asked
        return self.uid if same else f"{self.uid} of another pool"


@component
class LabelStudio(InstructionProvider):
    """Writes tasks to import into Label Studio, and reads the export that comes back.

    Of several annotations of an image, the oldest that is complete counts, but those that were starred (Label
    Studio's ground truth) come first. A Label Studio project may hold the tasks of several orders: its export
    does for the folder of each.

    Attributes:
        image_url: Where the annotators' browsers fetch an image; `{path}` stands for its path in the image
            folder, `{folder}` for the name of that folder. None writes the images into the tasks.
        answers: Folder that keeps every annotation, for all runs.
    """

    # Raised since starred annotations come first.
    version: ClassVar[int] = 2

    image_url: str | None = field(default="/data/local-files/?d={folder}/{path}", compare=False)
    answers: Path = field(compare=False)

    def __post_init__(self) -> None:
        """Checks what would otherwise show every annotator the same image."""
        if self.image_url is not None and "{path}" not in self.image_url:
            raise ValueError("image_url lacks {path}, which stands for the image's path in the image folder")

    def reveal(self, wanted: Sequence[Wanted], files: PoolFiles) -> Revealed:
        """Reads what was exported, and writes tasks for images that are in none yet.

        Raises:
            Paused: Until every image is annotated or skipped.
            PreselError: If an export does not belong to its tasks.
        """
        with Answers.opened(self._root) as answers:
            orders = placed(self._root, {_digest(image) for image in wanted})
            missing: dict[str, str] = {}
            for order in orders:
                missing |= self._take_up(order, answers)
            todo = {_digest(image): image for image in wanted if not answers.to(_digest(image))}
            if not todo:
                return _revealed(wanted, answers)
            new = todo.keys() - {asked for order in orders for asked in order.asked}
            if new:
                orders.append(self._order([image for asked, image in todo.items() if asked in new]))
            waiting = [order for order in orders if not order.asked.isdisjoint(todo)]
            for order in waiting:
                if not (order.folder / _EXPORT).exists():
                    # Also where there are tasks already: `image_url` may be another now.
                    self._write_tasks(order, files.images)
        half_done = {image.id: missing[asked] for asked, image in todo.items() if asked in missing}
        raise Paused(_what_to_do(len(todo), waiting, half_done, self._shown_from(files.images)))

    @property
    def _root(self) -> Path:
        return self.answers / "label_studio"

    def _order(self, images: Sequence[Wanted]) -> Order:
        requests = [
            Request(image.id, _digest(image), _TASKS, image.id, image.image, image.task) for image in images
        ]
        folder = folder_for(self._root, {request.name: request.asked for request in requests})
        return place(folder, requests)

    def _write_tasks(self, order: Order, images: Path) -> None:
        with atomic(order.folder / _INTERFACE_FILE) as temporary:
            temporary.write_text(_INTERFACE, encoding="utf-8")
        with atomic(order.folder / _TASKS) as temporary, temporary.open("w", encoding="utf-8") as stream:
            # One by one, since tasks may hold images.
            for number, request in enumerate(order.requests.values()):
                task = {
                    "image": self._url(request, images),
                    "uid": request.id,
                    "task": request.task,
                    "digest": request.asked,
                }
                stream.write(",\n" if number else "[\n")
                stream.write(json.dumps({"data": task}, ensure_ascii=False))
            stream.write("\n]\n")

    def _shown_from(self, images: Path) -> str:
        """What to tell whoever sets a project up; images within the tasks need nothing."""
        return "" if self.image_url is None else f" and access to the images in {images}"

    def _url(self, request: Request, images: Path) -> str:
        if self.image_url is not None:
            return self.image_url.replace("{folder}", quote(images.name)).replace(
                "{path}", quote(request.image)
            )

        def is_same(content: str) -> bool:
            return _digest(Wanted(request.id, request.image, request.task, content)) == request.asked

        return data_url(read_image(images, request.image, is_same), images / request.image, None)

    def _take_up(self, order: Order, answers: Answers) -> dict[str, str]:
        """Keeps what an export holds; gives what it lacks, and why, by digest."""
        file = order.folder / _EXPORT
        if not file.exists():
            return {}
        exported = [
            _read(task, number, file) for number, task in enumerate(elements(file, _no_export), start=1)
        ]
        together = placed(self._root, {one.digest for one in exported})
        others = {asked for other in together if other.folder != order.folder for asked in other.asked}
        ours = [one for one in exported if one.digest not in others]
        # An export of other orders alone is one in the wrong folder.
        order.check([(one.name_in(order), file) for one in ours or exported])
        missing = dict.fromkeys(order.asked, "not in the export")
        several = []
        for one in ours:
            asked = order.requests[one.uid].asked
            found, why_not = _written(one.annotations)
            if not found:
                missing[asked] = why_not
                continue
            del missing[asked]
            annotation = found[0]
            if len(found) > 1 and not annotation.get("was_cancelled"):
                several.append(one.uid)
            if answers.to(asked)[-1:] != [annotation]:
                answers.add(asked, one.uid, annotation, Spent(0, 0.0))
        if several:
            console.notice(
                f"{len(several)} images have several annotations, of which a starred one counts, or else the "
                f"oldest: {listed(several)}"
            )
        return missing


def _digest(image: Wanted) -> str:
    """Names an image by what it shows too, so that another pool's of that id is told apart."""
    return hashlib.sha256(json.dumps([image.id, image.content]).encode()).hexdigest()


def _no_export(error: RecordError) -> NoReturn:
    raise PreselError(
        f"{error.place}: this is no JSON list, or not a whole one; {_EXPORT_AS_JSON}"
    ) from error


def _read(task: object, number: int, file: Path) -> _Exported:
    data = task.get("data") if isinstance(task, dict) else None
    # Null where there are none; JSON-MIN has no such key.
    annotations = (task["annotations"] or []) if isinstance(task, dict) and "annotations" in task else None
    if (
        not isinstance(data, dict)
        or not isinstance(annotations, list)
        or not all(_is_annotation(one) for one in annotations)
    ):
        raise PreselError(
            f"{file}: task {number} has no 'data', or no 'annotations' with 'id' and 'result'; "
            f"{_EXPORT_AS_JSON}"
        )
    uid, digest = data.get("uid"), data.get("digest")
    if not isinstance(uid, str) or not isinstance(digest, str):
        raise PreselError(
            f"{file}: task {number} was not imported from {_TASKS}, since its 'data' lacks 'uid' or "
            "'digest'; delete it from the project (a storage that is synced adds such tasks) and export again"
        )
    # Label Studio exports them in whatever order its database gives them.
    in_order = sorted(annotations, key=lambda one: (not one.get("ground_truth"), one["id"]))
    return _Exported(uid, digest, in_order)


def _is_annotation(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("id"), int) and "result" in value


def _written(annotations: Sequence[_Annotation]) -> tuple[list[_Annotation], str]:
    """The annotations that are complete, or else those that were skipped, and why others are not complete."""
    complete, skipped, why_not = [], [], "not annotated"
    for annotation in annotations:
        if annotation.get("was_cancelled"):
            skipped.append(annotation)
            continue
        try:
            _conversation(annotation)
        except UnusableAnswer as error:
            why_not = str(error)
        else:
            complete.append(annotation)
    return complete or skipped, why_not


def _revealed(wanted: Sequence[Wanted], answers: Answers) -> Revealed:
    records: list[Record] = []
    unanswered: dict[str, str] = {}
    for image in wanted:
        # The last one, because a skipped image may be annotated later, and an annotation improved.
        annotation = answers.to(_digest(image))[-1]
        if annotation.get("was_cancelled"):
            unanswered[image.id] = "skipped by the annotator"
        else:
            records.append(Record(image.id, image.image, image.task, _conversation(annotation)))
    return Revealed(records, unanswered)


def _conversation(annotation: _Annotation) -> tuple[Turn, ...]:
    questions, answers = _texts(annotation, "question"), _texts(annotation, "answer")
    if not questions and not answers:
        raise UnusableAnswer("nothing written")
    if len(questions) != len(answers):
        raise UnusableAnswer(f"questions: {len(questions)}, answers: {len(answers)}")
    return as_turns(list(zip(questions, answers, strict=True)))


def _texts(annotation: _Annotation, name: str) -> list[str]:
    """What was written into the text area of that name.

    Raises:
        UnusableAnswer: If the result has another form, as imports by Label Studio's API leave it.
    """
    result = annotation["result"]
    if not isinstance(result, list) or not all(isinstance(one, dict) for one in result):
        raise UnusableAnswer("its result is no list of objects")
    texts: list[Any] = []
    for one in result:
        if one.get("from_name") == name:
            value = one.get("value")
            text = value.get("text", []) if isinstance(value, dict) else None
            texts += text if isinstance(text, list) else [text]
    if not all(isinstance(text, str) for text in texts):
        raise UnusableAnswer(f"what is written as {name} is no text")
    return [text.strip() for text in texts if text.strip()]


def _what_to_do(images: int, orders: Sequence[Order], half_done: dict[str, str], shown_from: str) -> str:
    folders = " and ".join(str(order.folder) for order in orders)
    steps = []
    if half_done:
        # Not imported again, which would double the tasks.
        steps.append(
            f"the export lacks {listed(list(half_done), half_done)}: annotate or skip them in the same "
            f"project, and export to {_EXPORT} again"
        )
    if not all((order.folder / _EXPORT).exists() for order in orders):
        steps.append(
            f"import {_TASKS} into a Label Studio project with {_INTERFACE_FILE} as its labeling interface"
            f"{shown_from}, annotate or skip, and export as JSON to {_EXPORT} in the same folder"
        )
    steps.append("run the same command again")
    return f"{images} images wait for people in {folders}; " + "; ".join(steps)
