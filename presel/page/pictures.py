"""Pictures on a page: thumbnails as `data:` URIs."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from presel.data.decoding import BrokenImage
from presel.data.images import map_images, open_image

# Pixels.
_SIDE = 96
# WebP, which browsers show since 2020, takes half the bytes of JPEG at this size.
_QUALITY = 60
# So many images are opened sooner than worker processes are started.
FEW = 500
# Thumbnails of a sheet: side by side, and in all.
SHEET_COLUMNS = 32
_SHEET = SHEET_COLUMNS**2


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        uri: A `data:` URI; empty if the image cannot be opened.
        name: What a reader needs to find the image, shown on hover.
    """

    uri: str
    name: str


@dataclass(frozen=True)
class PictureRow:
    """Pictures side by side, behind a heading."""

    heading: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Sheets:
    """Thumbnails of many images, row by row on square sheets of `SHEET_COLUMNS` columns.

    Attributes:
        uris: A `data:` URI for each sheet.
        side: Pixels of a thumbnail, which lies in the middle of a square of this size.
    """

    uris: Sequence[str]
    side: int


def picture(file: Path, name: str) -> Picture:
    """A thumbnail of an image file."""
    try:
        image = _thumbnail(file, _SIDE)
    except BrokenImage:
        return Picture("", name)
    return Picture(_uri(image), name)


def sheets(
    root: Path,
    images: Sequence[str],
    side: int,
    workers: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Sheets:
    """Puts thumbnails of many images onto sheets.

    Args:
        root: The image folder.
        images: Paths relative to it, in the order of their places; one that cannot be opened stays empty.
        side: Pixels of a thumbnail.
        workers: Worker processes that open images; 0 uses this process.
        on_progress: Called with the number of images finished since the last call.
    """
    thumbnails = map_images(root, images, _Cell(side), workers if len(images) > FEW else 0, on_progress)
    parts = [thumbnails[start : start + _SHEET] for start in range(0, len(thumbnails), _SHEET)]
    return Sheets([_uri(_sheet(part, side)) for part in parts], side)


def _sheet(thumbnails: Sequence[Image.Image | None], side: int) -> Image.Image:
    rows = -(-len(thumbnails) // SHEET_COLUMNS)
    sheet = Image.new("RGBA", (SHEET_COLUMNS * side, rows * side))
    for place, thumbnail in enumerate(thumbnails):
        if thumbnail is not None:
            row, column = divmod(place, SHEET_COLUMNS)
            margins = (side - thumbnail.width) // 2, (side - thumbnail.height) // 2
            sheet.paste(thumbnail, (column * side + margins[0], row * side + margins[1]))
    return sheet


@dataclass(frozen=True)
class _Cell:
    """A thumbnail of one image of a pool; a class, so that a worker process can take it."""

    side: int

    def __call__(self, root: Path, image: str) -> Image.Image | None:
        try:
            return _thumbnail(root / image, self.side)
        except BrokenImage:
            return None


def _thumbnail(file: Path, side: int) -> Image.Image:
    # Small images are enlarged, so that all are of one size.
    return ImageOps.contain(open_image(file), (side, side))


def _uri(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
