"""Batch jobs: requests that were written to files for a service or for people, and whose answers are awaited.

Each job is a folder, with a list of its requests in `job.json`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from presel.data.checks import check_file
from presel.errors import PreselError
from presel.instructions.provider import RequestedFile
from presel.storage.files import read_json, write_json

JOB_FILE = "job.json"
_MAX_LISTED = 5  # Names that a message lists before it counts the rest.


class JobRequest(NamedTuple):
    """The request for one image in a batch job.

    Attributes:
        name: The name that its answer must carry, unique within the job.
        digest: Digest of the request.
        file: Name of the job's file that contains it.
        id: The image's name in the pool.
        image: Its posix path relative to the image folder.
        task: Its task.
        several: The files of a record with several images.
    """

    name: str
    digest: str
    file: str
    id: str
    image: str
    task: str
    several: tuple[RequestedFile, ...] = ()


class BatchJob(NamedTuple):
    """Requests that were written together.

    Attributes:
        folder: Contains the request files, and receives the answer files.
        requests: The requests, by the names of their answers.
    """

    folder: Path
    requests: dict[str, JobRequest]

    @property
    def digests(self) -> set[str]:
        """Digests of all requests."""
        return {request.digest for request in self.requests.values()}

    def check(self, found: Sequence[tuple[str, Path]]) -> None:
        """Checks the name and the file of every answer.

        Raises:
            PreselError: If one belongs to another job, or a request is answered twice.
        """
        unknown = [(name, file) for name, file in found if name not in self.requests]
        if unknown:
            first = unknown[0][1]
            names = [name for name, file in unknown if file == first]
            raise PreselError(
                f"{first}: {len(names)} of its answers match no request of {self.folder.name} "
                f"({listed(names)}); the file belongs to another selection: move it to that one's folder"
            )
        times = Counter(name for name, _ in found)
        double = [name for name, count in times.items() if count > 1]
        if double:
            files = {file.name: None for name, file in found if name == double[0]}
            raise PreselError(
                f"{self.folder}: {len(double)} images are answered more than once "
                f"({listed([self.requests[name].id for name in double])}; the first in "
                f"{' and '.join(files)}); leave one answer for each"
            )


def folder_for(root: Path, digests: Mapping[str, str]) -> Path:
    """The folder of a job, from the digests of its requests by the names of their answers, in any order."""
    text = json.dumps(digests, sort_keys=True)
    return root / hashlib.sha256(text.encode()).hexdigest()[:12]


def save_job(folder: Path, requests: Sequence[JobRequest]) -> BatchJob:
    """Writes the list of requests, last: a folder without it is incomplete and ignored."""
    write_json(folder / JOB_FILE, [request._asdict() for request in requests])
    return BatchJob(folder, {request.name: request for request in requests})


def find_jobs(root: Path, digests: Collection[str]) -> list[BatchJob]:
    """All of a provider's jobs that contain any of these requests.

    Raises:
        PreselError: If a job's list of requests is malformed.
    """
    jobs = [_read(file) for file in sorted(root.glob(f"*/{JOB_FILE}"))]
    return [job for job in jobs if not job.digests.isdisjoint(digests)]


def listed(names: Sequence[str], why: Mapping[str, str] | None = None) -> str:
    """The first few names, each with its reason if reasons are given, and how many more there are."""
    first = [f"'{name}' ({why[name]})" if why else f"'{name}'" for name in names[:_MAX_LISTED]]
    return ", ".join(first) + (f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else "")


def _read(file: Path) -> BatchJob:
    check_file(file)
    try:
        requests = [_request(fields) for fields in read_json(file)]
    except (ValueError, TypeError, RecursionError) as error:
        raise PreselError(
            f"{file}: this is not a list of requests ({error}); restore it, or delete its folder to request "
            "the images again"
        ) from error
    return BatchJob(file.parent, {request.name: request for request in requests})


def _request(fields: dict[str, Any]) -> JobRequest:
    several = tuple(RequestedFile(*file) for file in fields.get("several", ()))
    return JobRequest(**fields | {"several": several})
