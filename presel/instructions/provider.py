"""Base class of instruction providers, and what passes between them and the ledger."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, NamedTuple

from pydantic import Field

from presel.component import component
from presel.data.listing import PoolFiles
from presel.data.llava import Record
from presel.data.sources import Source


class Wanted(NamedTuple):
    """An image whose instruction is asked for.

    Attributes:
        id: Its name in the pool.
        image: Posix path relative to the image folder.
        task: Its task.
        content: Digest of the image file's bytes.
    """

    id: str
    image: str
    task: str
    content: str


class Estimate(NamedTuple):
    """What instructions would cost.

    Attributes:
        tokens: Prompts and answers together.
        money: In the currency of the prices.
    """

    tokens: int
    money: float


class Revealed(NamedTuple):
    """What came of it.

    Attributes:
        records: The instructions.
        unanswered: Why there is none, by image.
    """

    records: list[Record]
    unanswered: dict[str, str]


@component
class InstructionProvider:
    """Base of whoever turns chosen images into instructions.

    Attributes:
        max_unanswered_share: Largest share of chosen images without an instruction that is put up with;
            above it the run stops.
    """

    # Decides whether instructions will do, not what they are.
    max_unanswered_share: Annotated[float, Field(ge=0, le=1)] = field(default=0.05, compare=False)

    def check_overrides(self, overrides: Sequence[str]) -> None:
        """Makes sure that what no configuration file may decide stands on the command line.

        Args:
            overrides: The command line's, as Hydra takes them.

        Raises:
            PreselError: If not.
        """

    def check_source(self, source: Source) -> None:
        """Makes sure, before the pool is read, that it is one whose images can be instructed.

        Raises:
            PreselError: If not.
        """

    def check(self, files: PoolFiles, tasks: Sequence[str]) -> None:
        """Makes sure, before any long work, that instructions can be had.

        Args:
            files: The pool's files.
            tasks: Its tasks.

        Raises:
            PreselError: If not.
        """

    def estimate(self, images: Mapping[str, int]) -> Estimate | None:
        """What instructions for so many images of each task would cost; None where nobody charges."""
        return None

    def exceeded(self, estimate: Estimate) -> list[str]:
        """The limits that such a cost would pass, as settings with their values."""
        return []

    def reveal(self, wanted: Sequence[Wanted], files: PoolFiles) -> Revealed:
        """Gives the instructions of these images and of no others; called once they stand in the ledger.

        Args:
            wanted: The chosen images.
            files: The pool's files.

        Raises:
            Paused: If others have to write them first.
            PreselError: If they cannot be had.
        """
        raise NotImplementedError
