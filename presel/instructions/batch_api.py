"""OpenAI's Batch API and compatible services: files of requests, answered within a day at lower prices."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from itertools import chain, groupby
from pathlib import Path
from typing import Annotated, Any, TypeGuard

from pydantic import Field

from presel.component import component
from presel.console import progress
from presel.data.checks import check_file
from presel.data.json_records import is_json_lines
from presel.data.listing import PoolFiles
from presel.errors import Paused, PreselError
from presel.instructions.answers import (
    Answers,
    Completion,
    has_message,
    is_completion,
    is_error,
    is_final_error,
    keep_private,
    make_private,
)
from presel.instructions.batch_jobs import BatchJob, JobRequest, find_jobs, folder_for, listed, save_job
from presel.instructions.chat_service import ChatService
from presel.instructions.pictures import broken_images
from presel.instructions.provider import InstructionRequest, ProviderResult
from presel.storage.files import atomic

_log = logging.getLogger(__name__)

_ANSWERS = "answers"
_URL = "/v1/chat/completions"
# Errors that are independent of the request, which can be sent again unchanged.
_RETRYABLE_CODES = {"batch_expired", "batch_cancelled"}
_RETRYABLE_STATUSES = {401, 402, 408, 429}


@component
class OpenAiBatch(ChatService):
    """Writes request files for the user to upload, and reads the answer files that the user downloads.

    Attributes:
        max_lines: Maximum number of requests in a file.
        max_bytes: Maximum size of a file in bytes.
    """

    image_side: Annotated[int, Field(ge=1)] | None = 1024
    max_lines: Annotated[int, Field(ge=1, le=50_000)] = field(default=50_000, compare=False)
    max_bytes: Annotated[int, Field(ge=1, le=200_000_000)] = field(default=200_000_000, compare=False)

    def reveal(self, requests: Sequence[InstructionRequest], files: PoolFiles) -> ProviderResult:
        """Reads the answer files, and writes request files for images that are in no pending one.

        Raises:
            Paused: Until every image has a final answer.
            PreselError: If answers do not belong to the requests.
        """
        with Answers.opened(self.answers) as answers:
            jobs = find_jobs(self._root, {self.request_digest(image) for image in requests})
            pending: dict[str, Path] = {}
            failed: dict[str, str] = {}
            for job in jobs:
                pending_files, why = self._read_answers(job, answers)
                pending |= pending_files
                failed |= why
            waiting = self.open_requests(requests, answers)
            due = [image for image in waiting if self.request_digest(image) not in pending]
            broken = broken_images(due, files.images)
            waiting = [image for image in waiting if image.id not in broken]
            due = [image for image in due if image.id not in broken]
            records, unanswered = self.results(requests, answers)
            if not waiting:
                return ProviderResult(records, unanswered | broken)
            if due:
                pending |= self._write_job(due, self._names(due, jobs, answers), files.images)
        sent = {request.id for job in jobs for request in job.requests.values()}
        again = {image.id: failed.get(image.id, unanswered[image.id]) for image in due if image.id in sent}
        waiting_files = {pending[self.request_digest(image)] for image in waiting}
        raise Paused(_what_to_do(waiting_files, len(waiting), again))

    @property
    def _root(self) -> Path:
        return self.answers / "openai_batch"

    def _names(
        self, due: Sequence[InstructionRequest], jobs: Sequence[BatchJob], answers: Answers
    ) -> dict[str, str]:
        """The digest of each request, by the name that its answer must carry.

        The name changes each time that an image is requested, so that late answers cannot be confused.
        """
        sent = Counter(request.digest for job in jobs for request in job.requests.values())
        digests = [self.request_digest(image) for image in due]
        return {f"{one[:32]}-{max(sent[one], len(answers.for_request(one))) + 1}": one for one in digests}

    def _write_job(
        self, due: Sequence[InstructionRequest], digests: Mapping[str, str], images: Path
    ) -> dict[str, Path]:
        """Writes request files; returns the file of each request, by the request's digest."""
        folder = folder_for(self._root, digests)
        make_private(folder)
        for unfinished in folder.glob("requests-*.jsonl"):
            unfinished.unlink()
        lines = (self._line(name, image, images) for name, image in zip(digests, due, strict=True))
        numbered = zip(in_files(lines, self.max_lines, self.max_bytes), digests.items(), due, strict=True)
        requests: list[JobRequest] = []
        with progress("writing requests", len(due)) as advance:
            for number, part in groupby(numbered, key=lambda one: one[0][0]):
                file = f"requests-{number:05}.jsonl"
                with atomic(folder / file, private=True) as new, new.open("wb") as stream:
                    for (_, line), (name, digest), image in part:
                        stream.write(line)
                        request = JobRequest(
                            name, digest, file, image.id, image.image, image.task, image.several
                        )
                        requests.append(request)
                        advance(1)
        make_private(folder / _ANSWERS)
        save_job(folder, requests)
        return {request.digest: folder / request.file for request in requests}

    def _line(self, name: str, image: InstructionRequest, images: Path) -> bytes:
        body = self.request(image, images)
        line = json.dumps({"custom_id": name, "method": "POST", "url": _URL, "body": body}).encode() + b"\n"
        if len(line) > self.max_bytes:
            raise PreselError(
                f"{images / image.image}: a request with this image takes {len(line):,} bytes, more than a "
                f"file may have (instructions.max_bytes={self.max_bytes}); shrink images by "
                "instructions.image_side=1024"
            )
        return line

    def _read_answers(self, job: BatchJob, answers: Answers) -> tuple[dict[str, Path], dict[str, str]]:
        """Stores the answers to a job that are not stored yet.

        Returns:
            The request files without any answer, by the digests of their requests; and why the service did
            not process a request, by image.

        Raises:
            PreselError: If files are malformed, or a request file is answered in part only.
        """
        _check_files(job)
        answered: set[str] = set()
        failed: dict[str, str] = {}
        for line in _answer_lines(job):
            request = job.requests[line["custom_id"]]
            answered.add(request.name)
            if why := _retryable_error(line):
                failed[request.id] = why
                continue
            completion = _completion(line)
            kept = [
                one for one in answers.for_request(request.digest) if one.get("custom_id") == request.name
            ]
            # An answer is stored even if an error with its name is stored already.
            if not kept or (has_message(completion) and not any(map(has_message, kept))):
                cost = self.cost(self.usage(request.task, completion, max(1, len(request.several))))
                answers.add(request.digest, request.id, completion, cost, self.cost_class(request.task))
        answered_files = {job.requests[name].file for name in answered}
        pending = [request for name, request in job.requests.items() if name not in answered]
        missing = [request for request in pending if request.file in answered_files]
        if missing:
            raise PreselError(
                f"{job.folder / _ANSWERS}: no answer to {len(missing)} requests of {missing[0].file}, "
                f"those about {listed([request.id for request in missing])}; add the rest of the output and "
                "error files, or delete the job's folder to request them again: received answers are kept"
            )
        return {request.digest: job.folder / request.file for request in pending}, failed


def in_files(lines: Iterable[bytes], max_lines: int, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Spreads lines, of at most `max_bytes` each, over files; yields each line after its file's number."""
    number, count, size = 1, 0, 0
    for line in lines:
        if count == max_lines or size + len(line) > max_bytes:
            number, count, size = number + 1, 0, 0
        count += 1
        size += len(line)
        yield number, line


def _check_files(job: BatchJob) -> None:
    """Checks that the answer files belong to a job, and reports lines that are ignored.

    Raises:
        PreselError: If a file does not contain answers, belongs to another job, or answers a request again.
    """
    found: list[tuple[str, Path]] = []
    errors: list[tuple[str, Path]] = []
    for file in _answer_files(job):
        check_file(file)
        keep_private(file)
        if not is_json_lines(file):
            raise PreselError(f"{file}: answers are JSON Lines; name it .jsonl, or remove it from the folder")
        ignored = 0
        for line in _lines(file):
            if _is_request(line):
                raise PreselError(
                    f"{file}: these are the requests, not the answers; replace it by the batch's output file"
                )
            if not _is_answer(line):
                ignored += 1
            elif has_message(_completion(line)):
                found.append((line["custom_id"], file))
            else:
                errors.append((line["custom_id"], file))
        if ignored:
            _log.warning(
                f"{file}: {ignored} lines answer no request and are ignored "
                "(malformed, without 'custom_id', or neither a chat completion nor an error)"
            )
    names = {name for name, _ in found}
    job.check(found + [(name, file) for name, file in errors if name not in names])


def _answer_files(job: BatchJob) -> list[Path]:
    return sorted((job.folder / _ANSWERS).glob("[!.]*"))


def _answer_lines(job: BatchJob) -> Iterator[dict[str, Any]]:
    """Every line that answers a request of a job."""
    return filter(_is_answer, chain.from_iterable(map(_lines, _answer_files(job))))


def _lines(file: Path) -> Iterator[object]:
    """The values of JSON Lines; None for a malformed line, so that the others can still be read."""
    with file.open("rb") as stream:
        for text in stream:
            if text.isspace():
                continue
            try:
                yield json.loads(text)
            except (ValueError, RecursionError):
                yield None


def _is_request(line: object) -> bool:
    return isinstance(line, dict) and {"method", "url", "body"} <= line.keys() and "response" not in line


def _is_answer(line: object) -> TypeGuard[dict[str, Any]]:
    """Whether this is a chat completion or an error, with the name of a request."""
    if not is_completion(line) or not isinstance(line.get("custom_id"), str) or not line["custom_id"]:
        return False
    completion = _completion(line)
    return has_message(completion) or is_error(completion) or _retryable_error(line) is not None


def _retryable_error(line: dict[str, Any]) -> str | None:
    """The error after which a request can be sent again unchanged; None if there is none."""
    error, response = line.get("error"), line.get("response")
    if is_final_error(_completion(line)):
        return None
    if isinstance(error, dict) and error.get("code") in _RETRYABLE_CODES:
        return f"{error['code']}"
    status = response.get("status_code") if isinstance(response, dict) else None
    if isinstance(status, int) and (status in _RETRYABLE_STATUSES or status >= 500):
        return f"status {status}"
    return None


def _completion(line: dict[str, Any]) -> Completion:
    """The answer in the form of the online API, or the error; with the name of its request."""
    response = line.get("response")
    body = response.get("body") if isinstance(response, dict) else None
    if not isinstance(body, dict) or not (has_message(body) or body.get("error")):
        body = {"error": line.get("error")}
    return body | {"custom_id": line["custom_id"]}


def _what_to_do(files: set[Path], images: int, again: dict[str, str]) -> str:
    folders = sorted({str(file.parent) for file in files})
    repeated = f"{len(again)} are requested again: {listed(list(again), again)}; " if again else ""
    return (
        f"the requests for {images} images wait in {len(files)} files, requests-*.jsonl in "
        f"{' and '.join(folders)}; {repeated}upload each (purpose batch, endpoint {_URL}), put all output "
        f"and error files, under any names that end in .jsonl, into the folder {_ANSWERS} beside it, and run "
        "the same command again"
    )
