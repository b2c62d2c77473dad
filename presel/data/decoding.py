"""Decodes image files into upright 8-bit RGB, in bounded memory."""

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

from presel.data.strip_metadata import START_OF_SCAN, jpeg_segments
from presel.errors import PreselError

# An explicit list: some of Pillow's other formats run external programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

# A file of a few kilobytes can claim any size. Common cameras have up to 61 megapixels, and Pillow keeps four
# bytes of each, in addition to the memory of its decoder and of the conversion to RGB. With these limits, a
# worker process that opens an image stays below half a gigabyte.
MAX_PIXELS = 64_000_000
MAX_BYTES = 385_000_000
# Each row is allocated separately, and converted at once.
MAX_SIDE = 1_000_000

# Bytes per pixel in Pillow's memory; 4 in every other mode.
_BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
# Pixels converted at once, to bound the memory of intermediate results.
_BAND_PIXELS = 250_000

_DNG_VERSION, _SUBFILE_TYPE, _SUB_IFDS = 50706, 254, 330

# 16-bit gray with 0 as white, which Pillow supports in the other byte order only.
OPEN_INFO.setdefault((MM, 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))

# The transposition for each EXIF orientation. Not `ImageOps.exif_transpose`: it also rewrites the EXIF block,
# which fails on the malformed blocks of some cameras.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = [_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)]


class BrokenImage(PreselError):
    """An image that cannot be used.

    Attributes:
        reason: What is wrong, in a few words, without the path.
    """

    def __init__(self, reason: str, path: Path | None = None) -> None:
        """Builds the message; the path is None if it is unknown, or the error is unpickled."""
        super().__init__(
            reason if path is None else f"{path}: {reason}; replace the file or remove its records"
        )
        self.reason = reason


class Picture(NamedTuple):
    """An opened image file.

    Attributes:
        image: Upright 8-bit RGB, without the file's metadata, so that nothing rotates it again.
        format: Pillow's name of the file's format.
        mode: Pillow's name of the file's pixel type.
        rotated: Whether it was rotated or mirrored by its EXIF orientation.
    """

    image: Image.Image
    format: str
    mode: str
    rotated: bool


class _Gray(NamedTuple):
    """Conversion of gray values of more than 8 bits to 8 bits: a right shift, then inversion if needed."""

    shift: int = 8
    inverted: bool = False


def decode(file: BinaryIO, file_bytes: int) -> Picture:
    """Decodes an image file, whose size is `file_bytes`.

    A JPEG or JPEG 2000 that would need too much memory is decoded at a half, a quarter or an eighth of its
    width and height.

    Raises:
        BrokenImage: If it needs too much memory, or its pixels have no defined white.
        Exception: Any exception of Pillow on a file that it cannot read.
    """
    file.seek(0)
    with Image.open(file, formats=FORMATS) as image:
        _refuse_raw(image)
        # A PNG may have its EXIF block after the pixels, and would be loaded to find it.
        rotated = image.format != "PNG" and turn_upright(image) is not None
        _fit(image, rotated, file_bytes)
        image.load()
        turn = turn_upright(image)
        pixels: Image.Image = image
        if turn is not None:
            if not rotated:
                _fit(image, True, file_bytes)
            pixels = image.transpose(turn)
            # Frees the pixels; `image.close()` would close the file as well.
            Image.Image.close(image)
        rgb = _to_rgb(pixels, _gray(image))
        rgb.info.clear()
        return Picture(rgb, str(image.format), image.mode, turn is not None)


def decoded_size(file: BinaryIO, file_bytes: int) -> tuple[int, int]:
    """Width and height of what `decode` returns, in pixels, without decoding the pixels of most formats.

    Raises:
        Exception: As `decode`.
    """
    file.seek(0)
    with Image.open(file, formats=FORMATS) as image:
        # Of these Pillow knows the size only once it decodes: a PNG may have its EXIF block after the pixels.
        if image.format == "JPEG2000" or (image.format == "PNG" and _may_be_rotated(file)):
            return decode(file, file_bytes).image.size
        turn = None if image.format == "PNG" else turn_upright(image)
        _fit(image, turn is not None, file_bytes)
        width, height = image.size
        # Pillow turns a TIFF itself, and gives its size as turned.
        sideways = turn in _SIDEWAYS and image.format != "TIFF"
    return (height, width) if sideways else (width, height)


def _may_be_rotated(png: BinaryIO) -> bool:
    png.seek(0)
    content = png.read()
    return b"eXIf" in content or b"Raw profile type exif" in content


def turn_upright(image: Image.Image) -> Image.Transpose | None:
    """The transposition that puts an image upright by its EXIF orientation; None if there is none."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    # A malformed EXIF block can raise any exception; the image itself may be fine, with unknown rotation.
    except Exception:
        return None


def _refuse_raw(image: ImageFile) -> None:
    """Rejects camera raw files in TIFF format, of which Pillow would read the thumbnail."""
    if not isinstance(image, TiffImageFile):
        return
    tags = image.tag_v2
    if _DNG_VERSION in tags or (tags.get(_SUBFILE_TYPE) == 1 and _SUB_IFDS in tags):
        raise BrokenImage("a camera's raw file, which is not read; convert it to JPEG or PNG")


def _fit(image: ImageFile, rotated: bool, file_bytes: int) -> None:
    """Reduces the size at which an image is decoded until it fits into memory, if its format allows that.

    Raises:
        BrokenImage: If it needs too much memory.
    """
    if max(image.size) > MAX_SIDE:
        raise BrokenImage(f"too large: {image.width}×{image.height} pixels, of at most {MAX_SIDE:,} a side")
    reducible = isinstance(image, JpegImageFile) or image.format == "JPEG2000"
    for halvings in range(4 if reducible else 1):
        pixels = image.width * image.height // 4**halvings
        if pixels <= MAX_PIXELS and _peak_bytes(image, pixels, rotated, file_bytes) <= MAX_BYTES:
            break
    else:
        megabytes = _peak_bytes(image, image.width * image.height, rotated, file_bytes) / 1e6
        raise BrokenImage(
            f"too large: {image.width}×{image.height} pixels, {megabytes:.0f} MB to decode, of at most "
            f"{MAX_PIXELS / 1e6:.0f} megapixels and {MAX_BYTES / 1e6:.0f} MB"
        )
    if halvings and isinstance(image, JpegImageFile):
        image.draft(None, (image.width >> halvings, image.height >> halvings))
    elif halvings:
        image.reduce = halvings  # type: ignore[method-assign, assignment]


def _peak_bytes(image: ImageFile, pixels: int, rotated: bool, file_bytes: int) -> int:
    """Estimated peak memory of decoding to this many pixels."""
    kept = _BYTES_PER_PIXEL.get(image.mode, 4)
    unchanged = image.mode == "RGB" and not image.has_transparency_data and not rotated
    decoding = kept * pixels + _decoder_bytes(image, pixels, file_bytes)
    return max(decoding, (kept if unchanged else kept + 4) * pixels)


def _decoder_bytes(image: ImageFile, pixels: int, file_bytes: int) -> int:
    """Memory of the format's decoder, as measured, in addition to the pixels."""
    if isinstance(image, JpegImageFile):
        return 0 if _is_sequential(image) else _coefficient_bytes(image)
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


def _is_sequential(image: JpegImageFile) -> bool:
    """Whether a JPEG consists of a single scan."""
    if "progressive" in image.info or image.fp is None:
        return False
    *_, (marker, body) = jpeg_segments(image.fp)
    return marker == START_OF_SCAN and body[:1] == bytes([image.layers])


def _coefficient_bytes(image: JpegImageFile) -> int:
    """Two bytes for each coefficient of a JPEG of several scans, kept in memory until the last one."""
    areas = [horizontal * vertical for _, horizontal, vertical, _ in image.layer]
    return 2 * image.width * image.height * sum(areas) // max(areas)


def _block_bytes(image: TiffImageFile) -> int:
    """Two copies of a strip or tile, which may be the whole image."""
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
    # Pillow itself inverts images of up to 8 bits.
    return _Gray(4 if image.tag_v2.get(BITSPERSAMPLE) == (12,) else 8, white_is_zero)


def _to_rgb(image: Image.Image, gray: _Gray) -> Image.Image:
    if image.mode == "F":
        raise BrokenImage("floating-point pixels, which have no agreed white")
    if image.mode == "RGB" and not image.has_transparency_data:
        # Shares the pixels: a copy would double the memory.
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
    """Keeps the high byte, as Pillow does for 16-bit color; `convert` would clip at 255."""
    values = np.asarray(image)  # (height, width)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise BrokenImage("32-bit or negative pixels, which have no agreed white")
    scaled = (values >> gray.shift).astype(np.uint8)
    if gray.inverted:
        scaled = 255 - scaled
    if "transparency" in image.info:
        scaled[values == image.info["transparency"]] = 255
    return Image.fromarray(scaled)
