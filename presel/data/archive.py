"""Files that have images packed in them."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol


class PackedImage(NamedTuple):
    """An image as it lies in an archive.

    Attributes:
        id: Unique within the archive.
        task: Its task, or None.
        suffix: What its file's name is to end in, the dot included.
        data: The bytes of the image file.
    """

    id: str
    task: str | None
    suffix: str
    data: bytes


class Archive(Protocol):
    """An archive of images."""

    def identity(self) -> dict[str, Any]:
        """What decides the images: the archive's files and how they are read.

        Raises:
            PreselError: If a file is missing.
        """

    def parts(self) -> Sequence[Iterable[PackedImage]]:
        """The images in parts, the same ones at every call; a part is read once it is iterated over.

        Raises:
            PreselError: If the archive is not as it should be, here or while a part is read.
        """
