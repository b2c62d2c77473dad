"""Base class of instruction providers, and the types that pass between them and the ledger."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field

from presel.component import component
from presel.data.listing import PoolFiles
from presel.data.llava import Record
from presel.data.prompts import Turn
from presel.data.sources import Source

# Kind of the reason of images that were skipped after many failures: never the cause itself.
NOT_REQUESTED = "not requested"


class RequestedFile(NamedTuple):
    """An image file that an instruction is about.

    Attributes:
        path: Posix path relative to the image folder.
        content: SHA-256 of its bytes.
    """

    path: str
    content: str


class InstructionRequest(NamedTuple):
    """A chosen image, whose instruction is requested; or a record with several.

    Attributes:
        id: Its name in the pool.
        image: Posix path relative to the image folder; of several images, the first.
        task: Its task.
        content: SHA-256 of the image file's bytes; of several, a digest of theirs.
        several: The files of a record with several images, in order; empty for one image.
    """

    id: str
    image: str
    task: str
    content: str
    several: tuple[RequestedFile, ...] = ()

    @property
    def files(self) -> tuple[RequestedFile, ...]:
        """The image files, in order."""
        return self.several or (RequestedFile(self.image, self.content),)

    def record(self, conversation: Sequence[Turn]) -> Record:
        """The training record that an answer makes of it; a question holds an `<image>` for each file."""
        return Record(self.id, tuple(file.path for file in self.files), self.task, tuple(conversation))


class Cost(NamedTuple):
    """What answers cost, or are estimated to.

    Attributes:
        tokens: Prompts and answers together.
        money: In the currency of the prices.
    """

    tokens: int
    money: float


class ProviderResult(NamedTuple):
    """What a provider returns.

    Attributes:
        records: The instructions.
        unanswered: Why there is none, by image: `kind`, or `kind: detail`; errors count the kinds.
    """

    records: list[Record]
    unanswered: dict[str, str]


@component
class InstructionProvider:
    """Base class of instruction providers.

    Attributes:
        max_unanswered_share: Maximum share of chosen images without an instruction; the run stops above it.
    """

    # Whether people can change instructions afterwards, see `check_result`.
    revisable: ClassVar[bool] = False

    # Acceptance threshold; it does not change the instructions, so it is not part of the key.
    max_unanswered_share: Annotated[float, Field(ge=0, le=1)] = field(default=0.05, compare=False)

    def check_overrides(self, overrides: Sequence[str]) -> None:
        """Raises `PreselError` unless the command line gives what no configuration file may decide."""

    def check_source(self, source: Source) -> None:
        """Raises `PreselError`, before the pool is read, unless instructions can be written for it."""

    def check(self, files: PoolFiles, tasks: Sequence[str]) -> None:
        """Raises `PreselError`, before any long work, unless the pool's instructions can be written."""

    def estimate(self, images: Mapping[str, int]) -> Cost | None:
        """Expected cost of instructions for this many images of each task; None if they are free."""
        return None

    def costs(self, requests: Sequence[InstructionRequest]) -> dict[str, Cost]:
        """What all answers to these requests cost, by image; empty if nobody bills them."""
        return {}

    def exceeded(self, estimate: Cost) -> list[str]:
        """The limits that this cost would exceed, as settings with their values."""
        return []

    def reveal(self, requests: Sequence[InstructionRequest], files: PoolFiles) -> ProviderResult:
        """Returns the instructions of these images and of no others.

        Instructions are sealed: only `presel.instructions.ledger.request` calls this, once the images are
        written into the ledger.

        Raises:
            Paused: If people or an external service have to write them first.
            PreselError: If they cannot be provided.
        """
        raise NotImplementedError

    def check_result(self, requests: Sequence[InstructionRequest], records: Sequence[Record]) -> None:
        """Raises `PreselError` if people have changed instructions since these records were stored."""

    def retry_remedy(self, unanswered: Sequence[InstructionRequest]) -> str:
        """The remedy in the error message that requests these images again; '' if there is none."""
        return ""
