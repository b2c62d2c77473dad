"""A service that answers files of requests within a day, for less money: OpenAI's Batch API and its kin."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from itertools import chain, groupby
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeGuard

from pydantic import Field

from presel.component import component
from presel.console import console, progress
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
from presel.instructions.chat_service import ChatService
from presel.instructions.orders import Order, Request, folder_for, listed, place, placed
from presel.instructions.pictures import broken_images
from presel.instructions.provider import Revealed, Wanted
from presel.storage.files import atomic

_ANSWERS = "answers"
_URL = "/v1/chat/completions"
# What says nothing of the request itself, which can be sent again as it is.
_NOT_WORKED_ON = {"batch_expired", "batch_cancelled"}
_PASSING = {401, 402, 408, 429}


class _CameBack(NamedTuple):
    """What came back of an order.

    Attributes:
        pending: Files of which nothing came back, by the digest of what is asked there.
        failed: Why a request was not worked on, by image.
    """

    pending: dict[str, Path]
    failed: dict[str, str]


@component
class OpenAiBatch(ChatService):
    """Writes request files for somebody to upload, and reads the answer files that come back.

    Attributes:
        max_lines: Most requests of a file.
        max_bytes: Most bytes of a file.
    """

    image_side: Annotated[int, Field(ge=1)] | None = 1024
    max_lines: Annotated[int, Field(ge=1, le=50_000)] = field(default=50_000, compare=False)
    max_bytes: Annotated[int, Field(ge=1, le=200_000_000)] = field(default=200_000_000, compare=False)

    def reveal(self, wanted: Sequence[Wanted], files: PoolFiles) -> Revealed:
        """Reads what came back, and orders what nobody is working on.

        Raises:
            Paused: Until every image is settled.
            PreselError: If what came back does not belong to what was ordered.
        """
        with Answers.opened(self.answers) as answers:
            orders = placed(self._root, {self.asked(image) for image in wanted})
            pending: dict[str, Path] = {}
            failed: dict[str, str] = {}
            for order in orders:
                back = self._take_up(order, answers)
                pending |= back.pending
                failed |= back.failed
            unsettled = self.unsettled(wanted, answers)
            due = [image for image in unsettled if self.asked(image) not in pending]
            broken = broken_images(due, files.images)
            unsettled = [image for image in unsettled if image.id not in broken]
            due = [image for image in due if image.id not in broken]
            records, unanswered = self.settled(wanted, answers)
            if not unsettled:
                return Revealed(records, unanswered | broken)
            if due:
                pending |= self._order(due, self._names(due, orders, answers), files.images)
        ordered = {request.id for order in orders for request in order.requests.values()}
        again = {image.id: failed.get(image.id, unanswered[image.id]) for image in due if image.id in ordered}
        raise Paused(_what_to_do({pending[self.asked(image)] for image in unsettled}, len(unsettled), again))

    @property
    def _root(self) -> Path:
        return self.answers / "openai_batch"

    def _names(self, due: Sequence[Wanted], orders: Sequence[Order], answers: Answers) -> dict[str, str]:
        """What each answer is to come back under, with the digest of what is asked.

        Another name each time that an image is asked about, so that answers that come late are told apart.
        """
        ordered = Counter(request.asked for order in orders for request in order.requests.values())
        times = {asked: max(ordered[asked], len(answers.to(asked))) for asked in map(self.asked, due)}
        return {f"{asked[:32]}-{count + 1}": asked for asked, count in times.items()}

    def _order(self, due: Sequence[Wanted], asked: Mapping[str, str], images: Path) -> dict[str, Path]:
        """Writes request files; gives the file of each request, by the digest of what is asked."""
        folder = folder_for(self._root, asked)
        make_private(folder)
        for unfinished in folder.glob("requests-*.jsonl"):
            unfinished.unlink()
        lines = (self._line(name, image, images) for name, image in zip(asked, due, strict=True))
        numbered = zip(in_files(lines, self.max_lines, self.max_bytes), asked.items(), due, strict=True)
        requests: list[Request] = []
        with progress("writing requests", len(due)) as advance:
            for number, part in groupby(numbered, key=lambda one: one[0][0]):
                file = f"requests-{number:05}.jsonl"
                with atomic(folder / file, private=True) as new, new.open("wb") as stream:
                    for (_, line), (name, digest), image in part:
                        stream.write(line)
                        requests.append(Request(name, digest, file, image.id, image.image, image.task))
                        advance(1)
        make_private(folder / _ANSWERS)
        place(folder, requests)
        return {request.asked: folder / request.file for request in requests}

    def _line(self, name: str, image: Wanted, images: Path) -> bytes:
        body = self.request(image, images)
        line = json.dumps({"custom_id": name, "method": "POST", "url": _URL, "body": body}).encode() + b"\n"
        if len(line) > self.max_bytes:
            raise PreselError(
                f"{images / image.image}: a request with this image takes {len(line):,} bytes, more than a "
                f"file may hold (instructions.max_bytes={self.max_bytes}); shrink images by "
                "instructions.image_side=1024"
            )
        return line

    def _take_up(self, order: Order, answers: Answers) -> _CameBack:
        """Keeps the answers to an order that are not kept yet.

        Raises:
            PreselError: If files are amiss, or some requests of a file have no answer that others of it have.
        """
        _check_files(order)
        came: set[str] = set()
        failed: dict[str, str] = {}
        for line in _answer_lines(order):
            request = order.requests[line["custom_id"]]
            came.add(request.name)
            why = _not_worked_on(line)
            if why:
                failed[request.id] = why
                continue
            completion = _completion(line)
            kept = [one for one in answers.to(request.asked) if one.get("custom_id") == request.name]
            # An error that was kept does not stand in the way of an answer.
            if not kept or (has_message(completion) and not any(map(has_message, kept))):
                cost = self.cost(self.usage(request.task, completion))
                answers.add(request.asked, request.id, completion, cost, self.kind(request.task))
        answered_files = {order.requests[name].file for name in came}
        awaited = [request for name, request in order.requests.items() if name not in came]
        missing = [request for request in awaited if request.file in answered_files]
        if missing:
            raise PreselError(
                f"{order.folder / _ANSWERS}: no answer to {len(missing)} requests of {missing[0].file}, "
                f"those about {listed([request.id for request in missing])}; add the rest of the output and "
                "error files, or delete the order's folder to have them asked about again: what came is kept"
            )
        return _CameBack({request.asked: order.folder / request.file for request in awaited}, failed)


def in_files(lines: Iterable[bytes], max_lines: int, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Spreads lines over files.

    Args:
        lines: None longer than `max_bytes`; read one by one.
        max_lines: Most lines of a file.
        max_bytes: Most bytes of a file.

    Yields:
        The number of its file, from 1, and the line.
    """
    number, count, size = 1, 0, 0
    for line in lines:
        if count == max_lines or size + len(line) > max_bytes:
            number, count, size = number + 1, 0, 0
        count += 1
        size += len(line)
        yield number, line


def _check_files(order: Order) -> None:
    """Makes sure that the files of answers belong to an order, and tells of lines that answer nothing.

    Raises:
        PreselError: If a file is no file of answers, belongs to another order, or answers a request again.
    """
    found: list[tuple[str, Path]] = []
    errors: list[tuple[str, Path]] = []
    for file in _answer_files(order):
        check_file(file)
        keep_private(file)
        if not is_json_lines(file):
            raise PreselError(f"{file}: answers are JSON Lines; name it .jsonl, or take it out of the folder")
        passed_over = 0
        for line in _lines(file):
            if _is_request(line):
                raise PreselError(
                    f"{file}: these are the requests, not the answers; replace it by the batch's output file"
                )
            if not _is_answer(line):
                passed_over += 1
            elif has_message(_completion(line)):
                found.append((line["custom_id"], file))
            else:
                errors.append((line["custom_id"], file))
        if passed_over:
            console.notice(
                f"{file}: {passed_over} lines answer no request and are passed over "
                "(malformed, without 'custom_id', or neither a chat completion nor an error)"
            )
    names = {name for name, _ in found}
    order.check(found + [(name, file) for name, file in errors if name not in names])


def _answer_files(order: Order) -> list[Path]:
    return sorted((order.folder / _ANSWERS).glob("[!.]*"))


def _answer_lines(order: Order) -> Iterator[dict[str, Any]]:
    """Every line that answers a request of an order."""
    return filter(_is_answer, chain.from_iterable(map(_lines, _answer_files(order))))


def _lines(file: Path) -> Iterator[object]:
    """The values of JSON Lines, None where a line is malformed: it must not cost the answers around it."""
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
    """Whether this is a chat completion or an error, under a name; nothing else settles a request."""
    if not is_completion(line) or not isinstance(line.get("custom_id"), str) or not line["custom_id"]:
        return False
    completion = _completion(line)
    return has_message(completion) or is_error(completion) or _not_worked_on(line) is not None


def _not_worked_on(line: dict[str, Any]) -> str | None:
    """Why a request is to be sent again as it is, if it is."""
    error, response = line.get("error"), line.get("response")
    if is_final_error(_completion(line)):
        return None
    if isinstance(error, dict) and error.get("code") in _NOT_WORKED_ON:
        return f"{error['code']}"
    status = response.get("status_code") if isinstance(response, dict) else None
    if isinstance(status, int) and (status in _PASSING or status >= 500):
        return f"status {status}"
    return None


def _completion(line: dict[str, Any]) -> Completion:
    """The answer as it would come online, or the error; with the name that it came back under."""
    response = line.get("response")
    body = response.get("body") if isinstance(response, dict) else None
    if not isinstance(body, dict) or not (has_message(body) or body.get("error")):
        body = {"error": line.get("error")}
    return body | {"custom_id": line["custom_id"]}


def _what_to_do(files: set[Path], images: int, again: dict[str, str]) -> str:
    folders = sorted({str(file.parent) for file in files})
    asked_again = f"{len(again)} are asked again: {listed(list(again), again)}; " if again else ""
    return (
        f"the requests for {images} images wait in {len(files)} files, requests-*.jsonl in "
        f"{' and '.join(folders)}; {asked_again}upload each (purpose batch, endpoint {_URL}), put all output "
        f"and error files, under any names that end in .jsonl, into the folder {_ANSWERS} beside it, and run "
        "the same command again"
    )
