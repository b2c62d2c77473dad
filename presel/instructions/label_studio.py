"""Instructions written by people in Label Studio."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import partial
from operator import eq
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, NoReturn
from urllib.parse import quote

from pydantic import Field

from presel.component import component
from presel.data.errors import RecordError
from presel.data.json_records import elements
from presel.data.listing import PoolFiles
from presel.data.llava import Record
from presel.data.prompts import Turn
from presel.errors import Paused, PreselError
from presel.instructions.answers import Answers
from presel.instructions.batch_jobs import BatchJob, JobRequest, find_jobs, folder_for, listed, save_job
from presel.instructions.drafts import Draft, read_drafts
from presel.instructions.pictures import data_url, read_image
from presel.instructions.prompts import UnusableAnswer, checked_turns
from presel.instructions.provider import Cost, InstructionProvider, InstructionRequest, ProviderResult
from presel.storage.files import atomic

_log = logging.getLogger(__name__)

_TASKS = "tasks.json"
_EXPORT = "export.json"
_INTERFACE_FILE = "config.xml"
# A task's only image, or its images, between which the annotator turns pages.
_ONE, _SEVERAL = 'value="$image"', 'valueList="$images"'
# Side by side: below a large image, annotators would have to scroll to the question of every task.
_INTERFACE = """<View style="display: flex; gap: 24px">
  <View style="flex: 3; min-width: 0">
    <Image name="image" SHOWN zoom="true"/>
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
    """An exported task.

    Attributes:
        uid: The image's id in the pool.
        digest: Digest of the request.
        annotations: The annotations: starred ones first, then by age.
    """

    uid: str
    digest: str
    annotations: list[_Annotation]

    def name_in(self, job: BatchJob) -> str:
        """The image's id, marked if the job has another picture of that id."""
        request = job.requests.get(self.uid)
        same = request is None or self.digest == request.digest
        return self.uid if same else f"{self.uid} of another pool"


class _JobExport(NamedTuple):
    """What an export holds of a job's tasks.

    Attributes:
        used: The annotation to use, by the request's digest.
        missing: Why there is no annotation, by that digest.
        several: Ids of images with several annotations.
    """

    used: dict[str, _Annotation]
    missing: dict[str, str]
    several: list[str]


@component
class LabelStudio(InstructionProvider):
    """Writes tasks to import into Label Studio, and reads its export.

    If an image has several annotations, the oldest complete one is used, or the oldest starred one (Label
    Studio's ground truth) if there is any. A Label Studio project may contain the tasks of several jobs; its
    export is valid for each of their folders.

    Attributes:
        image_url: URL from which annotators' browsers load an image; `{path}` stands for its path in the
            image folder, `{folder}` for the name of that folder. None writes the images into the tasks.
        drafts: File of questions, or of questions and answers, that annotators find filled in, see
            `read_drafts`; images without one start empty. None for none.
        revision: Number of a revision of annotations that a run has read already: with a new number they are
            read again, and whatever rests on them is computed again.
        answers: Folder that keeps every annotation, shared by all runs.
    """

    revisable: ClassVar[bool] = True
    # 2: starred annotations come first.
    version: ClassVar[int] = 2

    image_url: str | None = field(default="/data/local-files/?d={folder}/{path}", compare=False)
    # Not in the key: what counts is what the annotators leave.
    drafts: Path | None = field(default=None, compare=False)
    revision: Annotated[int, Field(ge=0)] = 0
    answers: Path = field(compare=False)

    @property
    def unused_settings(self) -> frozenset[str]:
        """The revision, where there is none, so that it is not part of the key."""
        return frozenset() if self.revision else frozenset({"revision"})

    def __post_init__(self) -> None:
        """Checks that images have different URLs."""
        if self.image_url is not None and "{path}" not in self.image_url:
            raise ValueError("image_url lacks {path}, which stands for the image's path in the image folder")

    def check(self, files: PoolFiles, tasks: Sequence[str]) -> None:
        """Checks the drafts, and warns of those whose ids no record of the pool has.

        Raises:
            PreselError: If they cannot be read, or are of another pool.
        """
        if self.drafts is None:
            return
        drafts = read_drafts(self.drafts)
        ids = {item.id for item in files.listing().items}
        unknown = [name for name in drafts if name not in ids]
        if len(unknown) == len(drafts):
            raise PreselError(
                f"{self.drafts}: no record of the pool has one of its {len(drafts):,} ids; name the drafts "
                "by the ids of their images, or set instructions.drafts=null"
            )
        if unknown:
            _log.warning(
                f"{self.drafts}: no record of the pool has {len(unknown):,} of its {len(drafts):,} ids, "
                f"which are left out: {listed(unknown)}"
            )

    def reveal(self, requests: Sequence[InstructionRequest], files: PoolFiles) -> ProviderResult:
        """Reads the exports, and writes tasks for images that have none yet.

        Raises:
            Paused: Until every image is annotated or skipped.
            PreselError: If an export does not belong to its tasks.
        """
        with Answers.opened(self._root) as answers:
            jobs = find_jobs(self._root, {_digest(image) for image in requests})
            missing: dict[str, str] = {}
            for job in jobs:
                exported = self._read_export(job)
                missing |= exported.missing
                for request in job.requests.values():
                    annotation = exported.used.get(request.digest)
                    if annotation and answers.for_request(request.digest)[-1:] != [annotation]:
                        answers.add(request.digest, request.id, annotation, Cost(0, 0.0))
                if exported.several:
                    _log.warning(
                        f"{len(exported.several)} images have several annotations; the oldest starred one is "
                        f"used, or else the oldest: {listed(exported.several)}"
                    )
            todo = {_digest(image): image for image in requests if not answers.for_request(_digest(image))}
            if not todo:
                # The last ones: a skipped image may be annotated later, or an annotation revised.
                latest = {digest: answers.for_request(digest)[-1] for digest in map(_digest, requests)}
                return _result(requests, latest)
            new = todo.keys() - {digest for job in jobs for digest in job.digests}
            if new:
                jobs.append(self._new_job([image for digest, image in todo.items() if digest in new]))
            waiting = [job for job in jobs if not job.digests.isdisjoint(todo)]
            for job in waiting:
                if not (job.folder / _EXPORT).exists():
                    # Also if there are tasks already: `image_url` may have changed.
                    self._write_tasks(job, files.images)
        incomplete = {image.id: missing[digest] for digest, image in todo.items() if digest in missing}
        # Tasks that contain their images need no access.
        access = f" and access to the images in {files.images}" if self.image_url is not None else ""
        raise Paused(_what_to_do(len(todo), waiting, incomplete, access))

    def check_result(self, requests: Sequence[InstructionRequest], records: Sequence[Record]) -> None:
        """Compares finished instructions with the exports.

        Raises:
            PreselError: If an annotation has changed.
        """
        if not self._root.exists():
            return
        by_digest = {_digest(image): image for image in requests}
        jobs = find_jobs(self._root, by_digest)
        answers = Answers.read(self._root)
        latest = {digest: found[-1] for digest in by_digest if (found := answers.for_request(digest))}
        latest |= {digest: found for job in jobs for digest, found in self._read_export(job).used.items()}
        kept = [by_digest[digest] for digest in by_digest if digest in latest]
        now = {record.id: record.conversations for record in _result(kept, latest).records}
        before = {record.id: record.conversations for record in records}
        if changed := [image.id for image in kept if now.get(image.id) != before.get(image.id)]:
            raise PreselError(
                f"annotations have changed since this run read them: {listed(changed)}, in "
                f"{', '.join(str(job.folder) for job in jobs) or self._root}; set instructions.revision="
                f"{self.revision + 1} to read them again and to compute what rests on them"
            )

    @property
    def _root(self) -> Path:
        return self.answers / "label_studio"

    def _new_job(self, images: Sequence[InstructionRequest]) -> BatchJob:
        requests = [
            JobRequest(image.id, _digest(image), _TASKS, image.id, image.image, image.task, image.several)
            for image in images
        ]
        folder = folder_for(self._root, {request.name: request.digest for request in requests})
        return save_job(folder, requests)

    def _write_tasks(self, job: BatchJob, images: Path) -> None:
        # One interface for all tasks.
        several = any(request.several for request in job.requests.values())
        with atomic(job.folder / _INTERFACE_FILE) as temporary:
            interface = _INTERFACE.replace("SHOWN", _SEVERAL if several else _ONE)
            temporary.write_text(interface, encoding="utf-8")
        drafts = read_drafts(self.drafts) if self.drafts else {}
        if drafts:
            count = sum(name in drafts for name in job.requests)
            _log.info(f"  drafts for {count:,} of {len(job.requests):,} images")
        with atomic(job.folder / _TASKS) as temporary, temporary.open("w", encoding="utf-8") as stream:
            # One by one, since tasks may contain images.
            for number, request in enumerate(job.requests.values()):
                urls = self._urls(request, images)
                data = {
                    **({"images": urls} if several else {"image": urls[0]}),
                    "uid": request.id,
                    "task": request.task,
                    "digest": request.digest,
                }
                draft = drafts.get(request.id)
                task = {"data": data} | ({"predictions": [_prediction(draft)]} if draft else {})
                stream.write(",\n" if number else "[\n")
                stream.write(json.dumps(task, ensure_ascii=False))
            stream.write("\n]\n")

    def _urls(self, request: JobRequest, images: Path) -> list[str]:
        """The URL of each image of a task."""
        if self.image_url is not None:
            folder = self.image_url.replace("{folder}", quote(images.name))
            paths = [file.path for file in request.several] or [request.image]
            return [folder.replace("{path}", quote(path)) for path in paths]

        def is_same(content: str) -> bool:
            image = InstructionRequest(request.id, request.image, request.task, content)
            return _digest(image) == request.digest

        checks: list[tuple[str, Callable[[str], bool]]] = [(request.image, is_same)]
        if request.several:
            checks = [(file.path, partial(eq, file.content)) for file in request.several]
        return [data_url(read_image(images, path, same), images / path, None) for path, same in checks]

    def _read_export(self, job: BatchJob) -> _JobExport:
        """Reads a job's export, if there is one.

        Raises:
            PreselError: If it does not belong to the job's tasks.
        """
        found = _JobExport({}, {}, [])
        file = job.folder / _EXPORT
        if not file.exists():
            return found
        exported = [
            _read(task, number, file) for number, task in enumerate(elements(file, _no_export), start=1)
        ]
        jobs = find_jobs(self._root, {one.digest for one in exported})
        others = {digest for other in jobs if other.folder != job.folder for digest in other.digests}
        own = [one for one in exported if one.digest not in others]
        # An export with other jobs' tasks only is in the wrong folder.
        job.check([(one.name_in(job), file) for one in own or exported])
        found.missing.update(dict.fromkeys(job.digests, "not in the export"))
        for one in own:
            digest = job.requests[one.uid].digest
            usable, why_not = _usable(one.annotations)
            if not usable:
                found.missing[digest] = why_not
                continue
            del found.missing[digest]
            found.used[digest] = usable[0]
            if len(usable) > 1 and not usable[0].get("was_cancelled"):
                found.several.append(one.uid)
        return found


def _prediction(draft: Draft) -> dict[str, Any]:
    """What Label Studio fills into the areas of the interface."""
    areas = {"question": draft.questions, "answer": draft.answers}
    result = [
        {"from_name": name, "to_name": "image", "type": "textarea", "value": {"text": texts}}
        for name, texts in areas.items()
        if texts
    ]
    return {"model_version": "draft", "result": result}


def _digest(image: InstructionRequest) -> str:
    """Digest of a request; it covers the image's bytes, since other pools may use the same id."""
    return hashlib.sha256(json.dumps([image.id, image.content]).encode()).hexdigest()


def _no_export(error: RecordError) -> NoReturn:
    raise PreselError(f"{error.place}: this is not a complete JSON list; {_EXPORT_AS_JSON}") from error


def _read(task: object, number: int, file: Path) -> _Exported:
    data = task.get("data") if isinstance(task, dict) else None
    # Null if there are none; JSON-MIN has no such key.
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
            "'digest'; delete it from the project (syncing a storage adds such tasks) and export again"
        )
    # Label Studio exports annotations in no particular order.
    in_order = sorted(annotations, key=lambda one: (not one.get("ground_truth"), one["id"]))
    return _Exported(uid, digest, in_order)


def _is_annotation(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("id"), int) and "result" in value


def _usable(annotations: Sequence[_Annotation]) -> tuple[list[_Annotation], str]:
    """The complete annotations, or else the skipped ones; and why the others are incomplete."""
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


def _result(requests: Sequence[InstructionRequest], latest: Mapping[str, _Annotation]) -> ProviderResult:
    records: list[Record] = []
    unanswered: dict[str, str] = {}
    for image in requests:
        annotation = latest[_digest(image)]
        if annotation.get("was_cancelled"):
            unanswered[image.id] = "skipped by the annotator"
        else:
            records.append(image.record(_conversation(annotation, len(image.files))))
    return ProviderResult(records, unanswered)


def _conversation(annotation: _Annotation, images: int = 1) -> tuple[Turn, ...]:
    questions, answers = _texts(annotation, "question"), _texts(annotation, "answer")
    if not questions and not answers:
        raise UnusableAnswer("nothing written")
    if len(questions) != len(answers):
        raise UnusableAnswer(f"questions: {len(questions)}, answers: {len(answers)}")
    return checked_turns(list(zip(questions, answers, strict=True)), images)


def _texts(annotation: _Annotation, name: str) -> list[str]:
    """The texts entered into the text area of that name.

    Raises:
        UnusableAnswer: If the result is malformed, as imports by Label Studio's API may leave it.
    """
    result = annotation["result"]
    if not isinstance(result, list) or not all(isinstance(one, dict) for one in result):
        raise UnusableAnswer("its result is not a list of objects")
    texts: list[Any] = []
    for one in result:
        if one.get("from_name") == name:
            value = one.get("value")
            text = value.get("text", []) if isinstance(value, dict) else None
            texts += text if isinstance(text, list) else [text]
    if not all(isinstance(text, str) for text in texts):
        raise UnusableAnswer(f"the {name} is not text")
    return [text.strip() for text in texts if text.strip()]


def _what_to_do(images: int, jobs: Sequence[BatchJob], incomplete: dict[str, str], access: str) -> str:
    folders = " and ".join(str(job.folder) for job in jobs)
    steps = []
    if incomplete:
        # A second import would duplicate the tasks.
        steps.append(
            f"the export lacks {listed(list(incomplete), incomplete)}: annotate or skip them in the same "
            f"project, and export to {_EXPORT} again"
        )
    if not all((job.folder / _EXPORT).exists() for job in jobs):
        steps.append(
            f"import {_TASKS} into a Label Studio project with {_INTERFACE_FILE} as its labeling interface"
            f"{access}, annotate or skip, and export as JSON to {_EXPORT} in the same folder"
        )
    steps.append("run the same command again")
    return f"{images} images wait for annotators in {folders}; " + "; ".join(steps)
