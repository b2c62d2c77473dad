"""What sources of images without instructions share."""

from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field

from presel.component import component
from presel.data.listing import Listing, OnError, refuse
from presel.data.sources import Source


@component
class ImageSource(Source):
    """Base of sources that hold images and no instructions.

    Attributes:
        task: The task of images for which nothing else names one.
    """

    instructed: ClassVar[bool] = False

    task: Annotated[str, Field(pattern=r"\S")] | None = None


class ImageFiles(NamedTuple):
    """Images that lie in a folder.

    Attributes:
        images: The folder.
        contents: Which images of it, and their tasks.
    """

    images: Path
    contents: Listing

    def listing(self, on_error: OnError = refuse) -> Listing:
        """The `contents`, which hold no mistakes."""
        return self.contents
