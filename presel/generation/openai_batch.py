"""A service that answers files of requests within a day, for less money: OpenAI's Batch API and its kin."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass as component

from presel.component import STRICT
from presel.console import progress
from presel.data.json_records import elements, is_json_lines
from presel.data.listing import PoolFiles
from presel.errors import Paused, PreselError
from presel.files import atomic
from presel.generation.answers import Answers, Completion, Spent
from presel.generation.generator import Generator
from presel.generation.orders import Order, Request, folder_for, listed, place, placed
from presel.generation.pictures import data_url, with_picture
from presel.ledger import Revealed, Wanted

_ANSWERS = "answers"
_URL = "/v1/chat/completions"
# What says nothing of the request itself, which can be sent again as it is.
_NOT_WORKED_ON = {"batch_expired", "batch_cancelled"}
_BUSY = {408, 429}


class _CameBack(NamedTuple):
    """What came back of an order.

    Attributes:
        pending: Files of which nothing came back, by the digest of what is asked there.
        failed: Why a request was not worked on, by image.
    """

    pending: dict[str, Path]
    failed: dict[str, str]


@component(frozen=True, kw_only=True, config=STRICT)
class OpenAiBatch(Generator):
    """Writes request files for somebody to upload, and reads the answer files that come back.

    Attributes:
        image_side: Longer images are shrunk to this many pixels; None for no limit.
        max_lines: Most requests of a file.
        max_bytes: Most bytes of a file.
        price_per_million_prompt_tokens: Price of a million tokens of prompts, images included.
        price_per_million_answer_tokens: Price of a million tokens of answers.
    """

    image_side: Annotated[int, Field(ge=1)] | None = field(default=None, compare=False)
    max_lines: Annotated[int, Field(ge=1, le=50_000)] = field(default=50_000, compare=False)
    max_bytes: Annotated[int, Field(ge=1, le=200_000_000)] = field(default=200_000_000, compare=False)
    price_per_million_prompt_tokens: Annotated[float, Field(ge=0)] = field(default=0.0, compare=False)
    price_per_million_answer_tokens: Annotated[float, Field(ge=0)] = field(default=0.0, compare=False)

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
            revealed = self.settled(wanted, answers)
            if not unsettled:
                return revealed
            due = [image for image in unsettled if self.asked(image) not in pending]
            if due:
                pending |= self._order(due, self._names(due, orders, answers), files.images)
        ordered = {request.id for order in orders for request in order.requests.values()}
        again = {
            image.id: failed.get(image.id, revealed.unanswered[image.id])
            for image in due
            if image.id in ordered
        }
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
        for unfinished in folder.glob("requests-*.jsonl"):
            unfinished.unlink()
        lines = (self._line(name, image, images) for name, image in zip(asked, due, strict=True))
        numbered = zip(in_files(lines, self.max_lines, self.max_bytes), asked.items(), due, strict=True)
        requests: list[Request] = []
        with progress("writing requests", len(due)) as advance:
            for number, part in groupby(numbered, key=lambda one: one[0][0]):
                file = f"requests-{number:05}.jsonl"
                with atomic(folder / file) as temporary, temporary.open("wb") as stream:
                    for (_, line), (name, digest), image in part:
                        stream.write(line)
                        requests.append(Request(name, digest, file, image.id, image.image, image.task))
                        advance(1)
        (folder / _ANSWERS).mkdir(exist_ok=True)
        place(folder, requests)
        return {request.asked: folder / request.file for request in requests}

    def _line(self, name: str, image: Wanted, images: Path) -> bytes:
        path = images / image.image
        body = self.body(image)
        body["messages"] = with_picture(body["messages"], data_url(path, self.image_side))
        line = json.dumps({"custom_id": name, "method": "POST", "url": _URL, "body": body}).encode() + b"\n"
        if len(line) > self.max_bytes:
            raise PreselError(
                f"{path}: a request with this image takes {len(line):,} bytes, more than a file may hold "
                f"(instructions.max_bytes={self.max_bytes}); shrink images by instructions.image_side=1024"
            )
        return line

    def _take_up(self, order: Order, answers: Answers) -> _CameBack:
        """Keeps the answers to an order that are not kept yet."""
        order.check([(line["custom_id"], file) for file, line in _lines(order)])
        answered_files: set[str] = set()
        failed: dict[str, str] = {}
        for _, line in _lines(order):
            request = order.requests[line["custom_id"]]
            answered_files.add(request.file)
            why = _not_worked_on(line)
            if why:
                failed[request.id] = why
            elif all(one.get("custom_id") != request.name for one in answers.to(request.asked)):
                completion = _completion(line)
                answers.add(request.asked, request.id, completion, self._spent(completion))
        pending = {
            request.asked: order.folder / request.file
            for request in order.requests.values()
            if request.file not in answered_files
        }
        return _CameBack(pending, failed)

    def _spent(self, completion: Completion) -> Spent:
        usage = completion.get("usage") or {}
        prompt, answer = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
        return Spent(
            prompt + answer,
            (prompt * self.price_per_million_prompt_tokens + answer * self.price_per_million_answer_tokens)
            / 1e6,
        )


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


def _lines(order: Order) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every line of the answer files of an order, with its file."""
    for file in sorted((order.folder / _ANSWERS).glob("[!.]*")):
        if not is_json_lines(file):
            raise PreselError(f"{file}: answers are JSON Lines; name it .jsonl, or take it out of the folder")
        for number, line in enumerate(elements(file), start=1):
            if not isinstance(line, dict) or not isinstance(line.get("custom_id"), str):
                raise PreselError(
                    f"{file}: answer {number} has no 'custom_id'; put the output and error files there as "
                    "the service gives them"
                )
            yield file, line


def _not_worked_on(line: dict[str, Any]) -> str | None:
    """Why a request is to be sent again as it is, if it is."""
    error, response = line.get("error"), line.get("response")
    if isinstance(error, dict) and error.get("code") in _NOT_WORKED_ON:
        return f"{error['code']}"
    status = response.get("status_code") if isinstance(response, dict) else None
    if isinstance(status, int) and (status in _BUSY or status >= 500):
        return f"status {status}"
    return None


def _completion(line: dict[str, Any]) -> Completion:
    """The answer as it would come online, or the error; with the name that it came back under."""
    response = line.get("response")
    body = response.get("body") if isinstance(response, dict) else {"error": line.get("error")}
    return (body if isinstance(body, dict) else {"body": body}) | {"custom_id": line["custom_id"]}


def _what_to_do(files: set[Path], images: int, again: dict[str, str]) -> str:
    folders = sorted({str(file.parent) for file in files})
    asked_again = f"{len(again)} are asked again: {listed(list(again), again)}; " if again else ""
    return (
        f"the requests for {images} images wait in {len(files)} files, requests-*.jsonl in "
        f"{' and '.join(folders)}; {asked_again}upload each (purpose batch, endpoint {_URL}), put all output "
        f"and error files, under any names that end in .jsonl, into the folder {_ANSWERS} beside it, and run "
        "the same command again"
    )
