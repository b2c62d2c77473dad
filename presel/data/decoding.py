"""Image files decoded into upright 8-bit RGB, in bounded memory."""

from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    MM,
    OPEN_INFO,
    PHOTOMETRIC_INTERPRETATION,
    ROWSPERSTRIP,
    TILELENGTH,
    TILEWIDTH,
    TiffImageFile,
)

from presel.data.bare import START_OF_SCAN, jpeg_segments
from presel.errors import PreselError

# A closed list, because Pillow's full one runs other programs on some files (Ghostscript on EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

# A file of a few kilobytes can claim any size. Cameras in wide use give up to 61 megapixels, of which Pillow
# keeps four bytes each. What its decoder and the conversion to RGB take comes on top. A worker process that
# opens an image stays below half a gigabyte.
MAX_PIXELS = 64_000_000
MAX_BYTES = 385_000_000
# Each row takes memory of its own, and is converted as a whole.
MAX_SIDE = 1_000_000

# Bytes that Pillow keeps of a pixel; 4 in every other mode.
_KEPT_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
# Pixels that are converted at once, so that the steps between take little.
_BAND_PIXELS = 250_000

_DNG_VERSION, _SUBFILE_TYPE, _SUB_IFDS = 50706, 254, 330

# 16-bit gray where 0 is white, which Pillow itself reads in the other byte order only.
OPEN_INFO.setdefault((MM, 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))

# How a picture is put upright, by its EXIF orientation. Not `ImageOps.exif_transpose`: that also writes
# the EXIF block anew, which fails on the odd blocks that some cameras leave.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BrokenImage(PreselError):
    """An image that cannot be used.

    Attributes:
        reason: What is wrong, in a few words, without the path.
    """

    def __init__(self, reason: str, path: Path | None = None) -> None:
        """Tells what is wrong with which file.

        Args:
            reason: What is wrong, in a few words.
            path: The file; None where it is not known, or the error is rebuilt from its message (pickling).
        """
        remedy = "replace the file or remove its records"
        super().__init__(reason if path is None else f"{path}: {reason}; {remedy}")
        self.reason = reason


class Picture(NamedTuple):
    """An opened image file.

    Attributes:
        image: Upright 8-bit RGB, without the file's metadata, so that nothing rotates it again.
        format: Pillow's name of the file's format.
        mode: Pillow's name of the kind of pixels in the file.
        rotated: Whether its EXIF block had it turned or mirrored.
    """

    image: Image.Image
    format: str
    mode: str
    rotated: bool


class _Gray(NamedTuple):
    """How gray values of more than 8 bits become 8: shifted down, then perhaps inverted."""

    shift: int = 8
    inverted: bool = False


def decode(file: BinaryIO, file_bytes: int) -> Picture:
    """Decodes an image file.

    A JPEG or JPEG 2000 that would take too much memory is decoded at a half, a quarter or an eighth of its
    width and height.

    Args:
        file: The file.
        file_bytes: Its size.

    Raises:
        BrokenImage: If it takes too much memory, or is in a form without a brightness scale of its own.
        Exception: Whatever Pillow raises on a file that it cannot read.
    """
    file.seek(0)
    with Image.open(file, formats=FORMATS) as image:
        _refuse_raw(image)
        # A PNG would be loaded to look for it behind the pixels.
        turned = image.format != "PNG" and turn_upright(image) is not None
        _fit(image, turned, file_bytes)
        image.load()
        turn = turn_upright(image)
        pixels: Image.Image = image
        if turn is not None:
            if not turned:
                _fit(image, True, file_bytes)
            pixels = image.transpose(turn)
            # Its pixels are freed; `image.close()` would close the file as well.
            Image.Image.close(image)
        rgb = _to_rgb(pixels, _gray(image))
        rgb.info.clear()
        return Picture(rgb, str(image.format), image.mode, turn is not None)


def turn_upright(image: Image.Image) -> Image.Transpose | None:
    """How an image is to be turned by its EXIF block, if at all."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    # A garbled EXIF block can raise anything; the picture itself is fine, and has no known rotation.
    except Exception:
        return None


def _refuse_raw(image: ImageFile) -> None:
    """Refuses cameras' raw files in the form of TIFF: Pillow would read the thumbnail in them."""
    if not isinstance(image, TiffImageFile):
        return
    tags = image.tag_v2
    if _DNG_VERSION in tags or (tags.get(_SUBFILE_TYPE) == 1 and _SUB_IFDS in tags):
        raise BrokenImage("a camera's raw file, which is not read; convert it to JPEG or PNG")


def _fit(image: ImageFile, turned: bool, file_bytes: int) -> None:
    """Has an image decoded at a size that memory allows, if its format can do so.

    Raises:
        BrokenImage: If it takes too much memory.
    """
    if max(image.size) > MAX_SIDE:
        raise BrokenImage(f"too large: {image.width}×{image.height} pixels, of at most {MAX_SIDE:,} a side")
    reducible = isinstance(image, JpegImageFile) or image.format == "JPEG2000"
    for halvings in range(4 if reducible else 1):
        pixels = image.width * image.height // 4**halvings
        if pixels <= MAX_PIXELS and _bytes_taken(image, pixels, turned, file_bytes) <= MAX_BYTES:
            break
    else:
        megabytes = _bytes_taken(image, image.width * image.height, turned, file_bytes) / 1e6
        raise BrokenImage(
            f"too large: {image.width}×{image.height} pixels, {megabytes:.0f} MB to decode, of at most "
            f"{MAX_PIXELS / 1e6:.0f} megapixels and {MAX_BYTES / 1e6:.0f} MB"
        )
    if halvings and isinstance(image, JpegImageFile):
        image.draft(None, (image.width >> halvings, image.height >> halvings))
    elif halvings:
        image.reduce = halvings  # type: ignore[method-assign, assignment]


def _bytes_taken(image: ImageFile, pixels: int, turned: bool, file_bytes: int) -> int:
    """The most memory that decoding to so many pixels takes, about."""
    kept = _KEPT_BYTES.get(image.mode, 4)
    as_it_is = image.mode == "RGB" and not image.has_transparency_data and not turned
    decoding = kept * pixels + _decoder_bytes(image, pixels, file_bytes)
    return max(decoding, (kept if as_it_is else kept + 4) * pixels)


def _decoder_bytes(image: ImageFile, pixels: int, file_bytes: int) -> int:
    """What the format's decoder takes besides the pixels that Pillow keeps, as measured."""
    if isinstance(image, JpegImageFile):
        return 0 if _is_decoded_in_order(image) else _coefficient_bytes(image)
    if isinstance(image, TiffImageFile):
        return _block_bytes(image)
    match image.format:
        case "WEBP":
            return 12 * pixels + file_bytes
        case "AVIF":
            return 10 * pixels + file_bytes
        case "JPEG2000":
            return (6 * len(image.getbands()) + 1) * pixels
        case "PPM" if image.tile[0].codec_name != "raw":
            return 16 * pixels
    return 0


def _is_decoded_in_order(image: JpegImageFile) -> bool:
    """Whether one scan holds a JPEG's whole picture."""
    if "progressive" in image.info or image.fp is None:
        return False
    *_, (marker, body) = jpeg_segments(image.fp)
    return marker == START_OF_SCAN and body[:1] == bytes([image.layers])


def _coefficient_bytes(image: JpegImageFile) -> int:
    """Two bytes for each sample of a JPEG of several scans, all of which are kept until the last one."""
    areas = [horizontal * vertical for _, horizontal, vertical, _ in image.layer]
    return 2 * image.width * image.height * sum(areas) // max(areas)


def _block_bytes(image: TiffImageFile) -> int:
    """Two copies of a strip or tile, which may be the whole picture."""
    if image.info.get("compression") == "raw":
        return 0
    tags = image.tag_v2
    width = tags.get(TILEWIDTH, image.width)
    height = tags.get(TILELENGTH, min(tags.get(ROWSPERSTRIP, image.height), image.height))
    return int(2 * width * height * sum(tags.get(BITSPERSAMPLE, (1,))) // 8)


def _gray(image: ImageFile) -> _Gray:
    if not isinstance(image, TiffImageFile):
        return _Gray()
    white_is_zero = image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0
    # Pillow itself inverts what has up to 8 bits.
    return _Gray(4 if image.tag_v2.get(BITSPERSAMPLE) == (12,) else 8, white_is_zero)


def _to_rgb(image: Image.Image, gray: _Gray) -> Image.Image:
    if image.mode == "F":
        raise BrokenImage("floating-point pixels, which have no agreed white")
    if image.mode == "RGB" and not image.has_transparency_data:
        # Not a copy, which would double the memory.
        return Image.Image()._new(image.im)
    rows = max(1, _BAND_PIXELS // image.width)
    if image.height <= rows:
        return _band_to_rgb(image, gray)
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(_band_to_rgb(band, gray), (0, top))
    return rgb


def _band_to_rgb(image: Image.Image, gray: _Gray) -> Image.Image:
    if image.mode.startswith("I"):
        return _gray_to_8_bits(image, gray).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _gray_to_8_bits(image: Image.Image, gray: _Gray) -> Image.Image:
    """Keeps the high byte, as Pillow does with 16-bit color; `convert` would clip at 255 instead."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise BrokenImage("32-bit or negative pixels, which have no agreed white")
    scaled = (values >> gray.shift).astype(np.uint8)
    if gray.inverted:
        scaled = 255 - scaled
    if "transparency" in image.info:
        scaled[values == image.info["transparency"]] = 255
    return Image.fromarray(scaled)
