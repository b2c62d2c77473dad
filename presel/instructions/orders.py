"""Orders: images that others were asked about, each in a folder where what comes back is awaited."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from presel.data.checks import check_file
from presel.errors import PreselError
from presel.storage.files import read_json, write_json

ORDER = "order.json"
_NAMED = 5  # What a message lists before it counts the rest.


class Request(NamedTuple):
    """One image of an order.

    Attributes:
        name: What its answer comes back under, unique within the order.
        asked: Digest of what is asked.
        file: The file of the order that asks about it.
        id: The image's name in the pool.
        image: Its posix path relative to the image folder.
        task: Its task.
    """

    name: str
    asked: str
    file: str
    id: str
    image: str
    task: str


class Order(NamedTuple):
    """Images that were asked about together.

    Attributes:
        folder: Holds the files that ask, and takes those that answer.
        requests: What was asked, by the name of the answer.
    """

    folder: Path
    requests: dict[str, Request]

    @property
    def asked(self) -> set[str]:
        """Digests of all that was asked."""
        return {request.asked for request in self.requests.values()}

    def check(self, found: Sequence[tuple[str, Path]]) -> None:
        """Makes sure that answers are to this order, one each.

        Args:
            found: The name and the file of every answer that came back.

        Raises:
            PreselError: If one belongs to another order, or is there twice.
        """
        unknown = [(name, file) for name, file in found if name not in self.requests]
        if unknown:
            first = unknown[0][1]
            names = [name for name, file in unknown if file == first]
            raise PreselError(
                f"{first}: {len(names)} of its answers are to nothing that was asked in {self.folder.name} "
                f"({listed(names)}); it belongs to another selection: move it to that one's folder"
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


def folder_for(root: Path, asked: Mapping[str, str]) -> Path:
    """The folder of an order: the same for the same requests, in whatever sequence.

    Args:
        root: Holds all orders of this kind.
        asked: Digest of what is asked, by the name of the answer.
    """
    text = json.dumps(asked, sort_keys=True)
    return root / hashlib.sha256(text.encode()).hexdigest()[:12]


def place(folder: Path, requests: Sequence[Request]) -> Order:
    """Writes down what was ordered; a folder without this file is unfinished, and counts for nothing."""
    write_json(folder / ORDER, [request._asdict() for request in requests])
    return Order(folder, {request.name: request for request in requests})


def placed(root: Path, asked: Collection[str]) -> list[Order]:
    """All orders that ask about any of these.

    Args:
        root: Holds all orders of this kind.
        asked: Digests of what is asked.

    Raises:
        PreselError: If what was written down of one cannot be read.
    """
    orders = [_read(file) for file in sorted(root.glob(f"*/{ORDER}"))]
    return [order for order in orders if not order.asked.isdisjoint(asked)]


def listed(names: Sequence[str], why: Mapping[str, str] | None = None) -> str:
    """The first few names, each with its reason if reasons are given, and how many more there are."""
    told = [f"'{name}' ({why[name]})" if why else f"'{name}'" for name in names[:_NAMED]]
    return ", ".join(told) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _read(file: Path) -> Order:
    check_file(file)
    try:
        requests = [Request(**fields) for fields in read_json(file)]
    except (ValueError, TypeError, RecursionError) as error:
        raise PreselError(
            f"{file}: this is no list of what was asked ({error}); restore it, or delete its folder to have "
            "the images asked about anew"
        ) from error
    return Order(file.parent, {request.name: request for request in requests})
