"""Image files: the form they are opened in, what is refused, and fingerprints. All files are real."""

import contextlib
import os
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from presel.data.decoding import FORMATS, MAX_PIXELS, BrokenImage
from presel.data.image_checks import Checked, check_image, for_each_image
from presel.data.images import image_fingerprint, image_size, open_image
from presel.data.signatures import what_is
from presel.errors import PreselError
from presel.storage.shards import SHARD_SIZE
from presel.storage.store import Store

Transpose = Image.Transpose
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(picture: Image.Image, path: Path, **options: Any) -> Path:
    """Writes a picture in the format of the name's ending."""
    picture.save(path, **options)
    return path


def pixel(path: Path, x: int = 0, y: int = 0) -> tuple[int, ...]:
    """Opens a file and looks at one pixel."""
    picture = open_image(path)
    assert picture.mode == "RGB"
    value = picture.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def quarters() -> Image.Image:
    """A picture whose corners tell every rotation and mirroring apart; JPEG keeps it nearly."""
    picture = Image.new("RGB", (64, 32), RED)
    picture.paste(GREEN, (32, 0, 64, 16))
    picture.paste(BLUE, (0, 16, 32, 32))
    picture.paste(WHITE, (32, 16, 64, 32))
    return picture


def noise(side: int = 64) -> Image.Image:
    """A picture that does not compress, so that cutting its file cuts its pixels."""
    values = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(values)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, depth: int = 8, kind: int = 0, extra: bytes = b"") -> bytes:
    """A PNG file, gray by default, with this header and these rows, whether they agree or not."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + extra
    chunks += png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


# Opening.


@pytest.mark.parametrize("ending", ["png", "bmp", "gif", "webp", "tif", "ppm", "jp2"])
def test_formats(tmp_path: Path, ending: str) -> None:
    options = {"lossless": True} if ending == "webp" else {}
    path = saved(quarters(), tmp_path / f"a.{ending}", **options)
    np.testing.assert_array_equal(np.asarray(open_image(path)), np.asarray(quarters()))
    assert image_size(path) == (64, 32)


def test_format_is_told_from_the_content(tmp_path: Path) -> None:
    assert pixel(saved(quarters(), tmp_path / "a.jpg", format="PNG")) == RED


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, None),
        (2, Transpose.FLIP_LEFT_RIGHT),
        (3, Transpose.ROTATE_180),
        (4, Transpose.FLIP_TOP_BOTTOM),
        (5, Transpose.TRANSPOSE),
        (6, Transpose.ROTATE_90),
        (7, Transpose.TRANSVERSE),
        (8, Transpose.ROTATE_270),
    ],
)
def test_exif_rotation(tmp_path: Path, orientation: int, stored: Transpose | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = quarters() if stored is None else quarters().transpose(stored)
    opened = open_image(saved(picture, tmp_path / "a.jpg", exif=exif, quality=95))
    assert opened.size == image_size(tmp_path / "a.jpg") == (64, 32)
    difference = np.abs(np.asarray(opened, dtype=int) - np.asarray(quarters(), dtype=int))
    assert difference[4:12, 4:28].max() < 10
    assert difference[4:12, 36:60].max() < 10
    assert difference[20:28, 4:28].max() < 10
    assert not opened.getexif(), "rotated already: nobody may do it again"


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_rotation_of_a_tiff(tmp_path: Path, compression: str | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = quarters().convert("L")
    path = saved(
        picture.transpose(Transpose.ROTATE_90), tmp_path / "a.tif", exif=exif, compression=compression
    )
    np.testing.assert_array_equal(np.asarray(open_image(path).convert("L")), np.asarray(picture))
    assert image_size(path) == picture.size


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0"])
def test_garbled_exif_does_not_cost_the_picture(tmp_path: Path, block: bytes) -> None:
    path = saved(quarters(), tmp_path / "a.jpg", exif=block, quality=95)
    assert open_image(path).size == (64, 32)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    np.testing.assert_allclose(pixel(saved(picture, tmp_path / "a.jpg", quality=95), 8, 8), RED, atol=6)


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_palette_with_transparency_lies_on_white(tmp_path: Path, ending: str) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.putpixel((1, 0), 1)
    path = saved(picture, tmp_path / f"a.{ending}", transparency=0)
    assert [pixel(path, 0), pixel(path, 1)] == [WHITE, RED]


def test_palette_with_an_alpha_for_every_color(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.putpixel((1, 0), 1)
    path = saved(picture, tmp_path / "a.png", transparency=bytes([0, 51]))
    assert [pixel(path, 0), pixel(path, 1)] == [WHITE, (255, 204, 204)]


def test_alpha_lies_on_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 255, 51))
    path = saved(picture, tmp_path / "a.png")
    assert [pixel(path, 0), pixel(path, 1)] == [WHITE, (204, 204, 255)]


def test_gray_with_alpha(tmp_path: Path) -> None:
    picture = Image.new("LA", (2, 1), (0, 0))
    picture.putpixel((1, 0), (100, 255))
    path = saved(picture, tmp_path / "a.png")
    assert [pixel(path, 0), pixel(path, 1)] == [WHITE, (100, 100, 100)]


def test_color_key_lies_on_white(tmp_path: Path) -> None:
    path = saved(quarters(), tmp_path / "a.png", transparency=RED)
    assert [pixel(path, 0), pixel(path, 40)] == [WHITE, GREEN]


@pytest.mark.parametrize(("mode", "value"), [("1", 1), ("L", 255)])
def test_gray_and_one_bit(tmp_path: Path, mode: str, value: int) -> None:
    picture = Image.new(mode, (2, 1))
    picture.putpixel((1, 0), value)
    path = saved(picture, tmp_path / "a.png")
    assert [pixel(path, 0), pixel(path, 1)] == [(0, 0, 0), WHITE]


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bit_gray_is_scaled_not_clipped(tmp_path: Path, ending: str) -> None:
    values = np.array([[0, 255, 256, 0x8000, 0xFFFF]], dtype=np.uint16)
    path = saved(Image.fromarray(values), tmp_path / f"a.{ending}")
    assert [pixel(path, x)[0] for x in range(5)] == [0, 0, 1, 128, 255]


def test_16_bit_big_endian_tiff(tmp_path: Path) -> None:
    picture = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 0x8000, 0xFFFF))
    path = saved(picture, tmp_path / "a.tif")
    assert [pixel(path, x)[0] for x in range(2)] == [128, 255]


def test_16_bit_gray_with_a_transparent_value(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    rows = b"\0" + struct.pack(">HH", 1000, 0x4000)
    path.write_bytes(png(2, 1, rows, depth=16, extra=png_chunk(b"tRNS", struct.pack(">H", 1000))))
    assert [pixel(path, x)[0] for x in range(2)] == [255, 64]


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("1", [0, 1], [255, 0]),
        ("L", [0, 100], [255, 155]),
        ("I;16", [0, 0x8000], [255, 127]),
        ("I;16B", [0, 0x8000], [255, 127]),
    ],
)
def test_tiff_with_inverted_gray_scale(
    tmp_path: Path, compression: str | None, mode: str, values: list[int], expected: list[int]
) -> None:
    picture = Image.new(mode, (2, 1))
    for x, value in enumerate(values):
        # Pillow inverts up to 8 bits as it saves, as it does when it reads them.
        picture.putpixel((x, 0), 255 - 255 * value if mode == "1" else 255 - value if mode == "L" else value)
    path = saved(picture, tmp_path / "a.tif", tiffinfo={262: 0}, compression=compression)
    assert [pixel(path, x)[0] for x in range(2)] == expected


def test_12_bit_tiff_is_scaled_by_its_own_white(tmp_path: Path) -> None:
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8 + 2 + 12 * 8 + 4), (277, 1), (279, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + b"\xff\xf8\0")
    assert [pixel(path, x)[0] for x in range(2)] == [255, 128]


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(2_000_000))),
        png_chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(bytes(2_000_000))),
        png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2_000_000))),
        png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000))) * 70,
        png_chunk(b"tEXt", b"a\0text")[:-1] + b"!",
        png_chunk(b"pHYs", b"?"),
        png_chunk(b"gAMA", b""),
        png_chunk(b"acTL", b"?"),
    ],
    ids=["zTXt", "iTXt", "iCCP", "total", "checksum", "pHYs", "gAMA", "acTL"],
)
def test_metadata_of_a_png_does_not_cost_the_picture(tmp_path: Path, chunk: bytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(quarters(), tmp_path / "a.png", exif=exif, transparency=GREEN)
    before = np.asarray(open_image(path))
    data = path.read_bytes()
    header, pixels = data.index(b"IHDR") + 4 + 13 + 4, data.index(b"IEND") - 4
    for place in (header, pixels):
        path.write_bytes(data[:place] + chunk + data[place:])
        np.testing.assert_array_equal(np.asarray(open_image(path)), before)


@pytest.mark.parametrize(
    ("marker", "body"), [(0xED, b"Photoshop 3.0\0"), (0xE0, b"JFIF\0\1"), (0xEE, b"Adobe\0"), (0xFE, b"")]
)
def test_metadata_of_a_jpeg_does_not_cost_the_picture(tmp_path: Path, marker: int, body: bytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(quarters().convert("CMYK"), tmp_path / "a.jpg", exif=exif)
    before = np.asarray(open_image(path))
    data = path.read_bytes()
    segment = struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body
    path.write_bytes(data[:2] + segment + data[2:])
    np.testing.assert_array_equal(np.asarray(open_image(path)), before)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"\0\0\0\x18ftypheic", "HEIC, which is not read; convert it to JPEG or PNG"),
        (b"\0\0\0\x18ftypmif1", "HEIC, which is not read; convert it to JPEG or PNG"),
        (b"\0\0\0\x14ftypqt  ", "a video (MP4 or MOV), not an image; save frames of it as images"),
        (b"\xff\x0a\x7f", "JPEG XL, which is not read; convert it to JPEG or PNG"),
        (b"8BPS\0\1", "PSD, which is not read; convert it to JPEG or PNG"),
        (b"%PDF-1.7", "PDF, which is not read; convert it to JPEG or PNG"),
        (bytes(128) + b"DICM", "DICOM, which is not read; convert it to JPEG or PNG"),
        (b'<?xml version="1.0"?>\n<SVG>', "SVG, which is not read; convert it to JPEG or PNG"),
        (b"\x1f\x8b\x08", "a gzip file, not an image; unpack it"),
        (b"PK\3\4", "a ZIP file, not an image; unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; run git lfs pull"),
        (b"/annex/objects/SHA256E", "a git-annex pointer; run git annex get"),
        (b"\xef\xbb\xbf\n<!DOCTYPE HTML>", "a web page, not an image; fetch the image again"),
        (b"<?xml?><Error>", "XML, not an image; fetch the image again"),
        (b'{"error": 403}', "JSON, not an image; fetch the image again"),
        ("grün".encode(), "a text file, not an image; fetch the image again"),
        ("grün".encode()[:3], "a text file, not an image; fetch the image again"),
        (b"/9j/4AAQSkZJRg", "base64 text, not an image file; decode it"),
        (b"data:image/png;base64,", "a data URI, not an image file; decode it"),
        (bytes(100), "zero bytes, not an image; fetch the image again"),
        (b"\n\xff\xd8\xff\xe0", "JPEG after 1 bytes that do not belong to it; remove these"),
        (b"\xef\xbb\xbf\x89PNG\r\n\x1a\n", "PNG after 3 bytes that do not belong to it; remove these"),
    ],
)
def test_files_that_are_no_image_are_named(tmp_path: Path, head: bytes, said: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(head)
    with pytest.raises(BrokenImage) as caught:
        open_image(path)
    assert caught.value.reason == said


@given(st.binary(max_size=300))
def test_any_bytes_have_a_name_or_none(head: bytes) -> None:
    assert what_is(head) is None or str(what_is(head))


def jpeg(side: int, scans: list[list[int]]) -> bytes:
    """A gray picture of three components, spread over so many scans."""

    def segment(marker: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body

    components = b"".join(bytes([component, 0x11, 0]) for component in (1, 2, 3))
    # One code of one bit in either table: every coefficient is 0.
    data = b"\xff\xd8" + segment(0xDB, b"\0" + bytes([1] * 64))
    data += segment(0xC0, struct.pack(">BHHB", 8, side, side, 3) + components)
    data += b"".join(segment(0xC4, bytes([table, 1, *[0] * 16])) for table in (0x00, 0x10))
    for scan in scans:
        named = b"".join(bytes([component, 0]) for component in scan)
        data += segment(0xDA, bytes([len(scan)]) + named + bytes([0, 63, 0]))
        data += bytes(side * side // 64 * len(scan) // 4)
    return data + b"\xff\xd9"


def test_scans_of_a_large_jpeg_count(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(256, [[1], [2], [3]]))
    assert pixel(path) == (128, 128, 128)
    path.write_bytes(jpeg(6400, [[1], [2], [3]]))
    assert open_image(path).size == image_size(path) == (3200, 3200)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_large_jpegs_are_read_at_a_smaller_size(tmp_path: Path, mode: str) -> None:
    size = (MAX_PIXELS // 4000 + 8, 4000)
    picture = Image.new(mode, size, "gray")
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(picture, tmp_path / "a.jpg", exif=exif if mode == "L" else b"")
    opened = open_image(path)
    smaller = (size[0] // 2, 2000)
    assert opened.size == image_size(path) == (smaller[::-1] if mode == "L" else smaller)


MEMORY = r"""
import re, sys
from pathlib import Path
from presel.data.images import open_picture
from presel.data.decoding import BrokenImage
for path in map(Path, sys.argv[1:]):
    try:
        print(open_picture(path).image.size)
    except BrokenImage as error:
        print(error.reason)
print(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells the highest memory")
def test_memory_of_an_image_is_bounded(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5)
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    paths[0].write_bytes(png(side, side, bytes((1 + side) * side)))
    for path, (depth, kind) in zip(paths[1:], [(16, 6), (16, 0), (8, 4)], strict=True):
        path.write_bytes(png(8900, 8900, b"", depth, kind))
    saved(Image.new("RGB", (6000, 4000)), tmp_path / "4.webp", lossless=True, quality=0, method=0)
    command = [sys.executable, "-c", MEMORY, *map(str, paths), str(tmp_path / "4.webp")]
    # Coverage would count.
    environment = os.environ | {"COVERAGE_PROCESS_CONFIG": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    *said, kilobytes = result.stdout.splitlines()
    assert [said[0], said[4]] == [f"({side}, {side})", "(6000, 4000)"]
    assert all("too large: 8900×8900 pixels, " in line for line in said[1:4])
    assert int(kilobytes) * 1024 < 500e6


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, GREEN, BLUE)]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with Image.open(path) as animation:
        assert len(list(ImageSequence.Iterator(animation))) == 3
    assert pixel(path) == RED


def test_file_is_closed_and_picture_lives_on(tmp_path: Path) -> None:
    path = saved(quarters(), tmp_path / "a.png")
    picture = open_image(path)
    path.unlink()
    assert picture.getpixel((0, 0)) == RED


# Refusals: how the file is made, and the reason that is given.


def make_missing(path: Path) -> None:
    """Makes nothing."""


def make_folder(path: Path) -> None:
    """Makes a folder of the image's name."""
    path.mkdir()


def make_pipe(path: Path) -> None:
    """Makes a pipe, which a careless reader would wait for."""
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    """Makes a link to itself."""
    path.symlink_to(path)


def make_empty(path: Path) -> None:
    """Makes a file of no bytes."""
    path.touch()


def make_rubbish(path: Path) -> None:
    """Makes a file of no known format."""
    path.write_bytes(b"\x80rubbish")


def make_truncated(kind: str, share: float) -> Callable[[Path], None]:
    """Makes an image and cuts its end off."""

    def make(path: Path) -> None:
        data = saved(noise(), path, format=kind).read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return make


def make_bomb(path: Path) -> None:
    """Makes a header that claims 2.5 gigapixels."""
    path.write_bytes(png(50_000, 50_000, b"\0"))


def make_large(path: Path) -> None:
    """Makes a complete, valid picture of few kilobytes, a little above the limit."""
    width, height = 10_000, MAX_PIXELS // 10_000 + 1
    path.write_bytes(png(width, height, bytes((1 + width // 8) * height), depth=1))


def make_narrow(path: Path) -> None:
    """Makes a picture of few pixels and many rows, each of which would take memory of its own."""
    path.write_bytes(png(1, 1_000_001, b""))


def make_above_warning(path: Path) -> None:
    """Makes a header in the range where Pillow itself would only warn."""
    path.write_bytes(png(10_000, 10_000, b"\0"))


def make_eps(path: Path) -> None:
    """Makes a file that Pillow would hand to another program."""
    saved(quarters(), path, format="EPS")


def make_raw(path: Path) -> None:
    """Makes what a DNG file begins with: a TIFF of its thumbnail."""
    saved(quarters(), path, format="TIFF", tiffinfo={50706: b"\1\4\0\0", 254: 1})


def make_bad_header(path: Path) -> None:
    """Makes a PNG with a damaged critical chunk."""
    path.write_bytes(png(4, 4, bytes(20)).replace(b"IHDR\0\0\0\4", b"IHDR\0\0\0\5"))


def make_unusual_tiff(path: Path) -> None:
    """Makes a TIFF of colors of which the first is to be white."""
    saved(quarters(), path, format="TIFF", tiffinfo={262: 0})


def make_float(path: Path) -> None:
    """Makes a TIFF of floating-point numbers."""
    saved(Image.new("F", (4, 4), 0.5), path, format="TIFF")


def make_32_bit(path: Path) -> None:
    """Makes a TIFF of numbers beyond 16 bits."""
    saved(Image.new("I", (4, 4), 1 << 20), path, format="TIFF")


def make_damaged(path: Path) -> None:
    """Makes a PNG whose pixels are not what its header says."""
    data = png(4, 4, bytes(20))
    path.write_bytes(data.replace(zlib.compress(bytes(20)), b"x" * len(zlib.compress(bytes(20)))))


REFUSALS = [
    (make_missing, "missing"),
    (make_folder, "a folder, not a file"),
    (make_pipe, "not a regular file"),
    (make_loop, "cannot be opened (Too many levels of symbolic links)"),
    (make_empty, "empty file"),
    (make_rubbish, "not an image of a known format"),
    (make_truncated("JPEG", 0.5), "truncated"),
    (make_truncated("JPEG", 0.97), "truncated"),
    (make_truncated("PNG", 0.5), "truncated"),
    (make_truncated("PNG", 0.97), "truncated"),
    (make_bomb, "too large: over 178,956,970 pixels"),
    (make_above_warning, "too large: 10000×10000 pixels"),
    (make_large, "too large: 10000×6401 pixels"),
    (make_narrow, "too large: 1×1000001 pixels, of at most 1,000,000 a side"),
    (make_eps, "PostScript, which is not read; convert it"),
    (make_raw, "a camera's raw file, which is not read; convert it"),
    (make_bad_header, "broken PNG file (bad header checksum in b'IHDR')"),
    (make_unusual_tiff, "broken or unusual TIFF (unknown pixel mode)"),
    (make_float, "floating-point pixels, which have no agreed white"),
    (make_32_bit, "32-bit or negative pixels, which have no agreed white"),
    (make_damaged, "cannot be decoded ("),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("make", "reason"), REFUSALS)
def test_refusals(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    path = tmp_path / "a.jpg"
    make(path)
    with pytest.raises(BrokenImage) as caught:
        open_image(path)
    assert caught.value.reason.startswith(reason)
    assert str(caught.value) == f"{path}: {caught.value.reason}; replace the file or remove its records"


def test_every_cut_of_a_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    data = saved(noise(16), path, quality=90).read_bytes()
    for length in range(0, len(data) - 2, 7):
        path.write_bytes(data[:length])
        with pytest.raises(BrokenImage):
            open_image(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_garbled_bytes_never_do_worse_than_a_refusal(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    data = saved(noise(12), path, format=kind).read_bytes()
    random = np.random.default_rng(0)
    for _ in range(100):
        garbled = bytearray(data)
        for position in random.integers(0, len(data), 3):
            garbled[position] = random.integers(256)
        path.write_bytes(garbled)
        with contextlib.suppress(BrokenImage):
            assert open_image(path).mode == "RGB"


def test_picture_at_the_limit_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    width, height = 10_000, MAX_PIXELS // 10_000
    path.write_bytes(png(width, height, bytes((1 + width // 8) * height), depth=1))
    assert open_image(path).size == (width, height)


def test_error_crosses_processes(tmp_path: Path) -> None:
    error = BrokenImage("truncated", tmp_path / "a.jpg")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.reason) == (str(error), "truncated")


# Checking many.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image folder with good and bad files, reached through a link, beside a file outside it."""
    real = tmp_path / "real"
    (real / "sub").mkdir(parents=True)
    saved(quarters(), real / "good.png")
    saved(Image.new("RGB", (2, 2)), real / "sub" / "smallest.png")
    saved(Image.new("RGB", (1, 1)), real / "dot.png")
    saved(Image.new("RGB", (9, 1)), real / "line.png")
    make_empty(real / "empty.png")
    saved(quarters(), tmp_path / "outside.png")
    (real / "inside_link.png").symlink_to("sub/smallest.png")
    (real / "outside_link.png").symlink_to("../outside.png")
    (real / "outside_folder").symlink_to(tmp_path)
    (tmp_path / "images").symlink_to(real)
    return tmp_path / "images"


EXPECTED = {
    "good.png": None,
    "sub/smallest.png": None,
    "dot.png": "too small: 1×1 pixels",
    "line.png": "too small: 9×1 pixels",
    "empty.png": "empty file",
    "missing.png": "missing",
    "inside_link.png": None,
    "outside_link.png": "leaves the image folder",
    "outside_folder/outside.png": "leaves the image folder",
    "../outside.png": "leaves the image folder",
    "sub": "a folder, not a file",
}


def check_images(root: Path, images: list[str], workers: int, min_side: int = 2) -> list[Checked]:
    """Checks images in shards that are kept beside their folder."""
    store = Store(root.parent / f"store-{min_side}")
    check = partial(check_image, min_side=min_side)
    return for_each_image(store, store.root / "work", root, images, check, Checked, workers)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_reasons_for_any_number_of_workers(folder: Path, workers: int) -> None:
    images = list(EXPECTED) * 2
    # More than one shard, and chunks that may end in any order.
    images += [f"absent/{number}.png" for number in range(600)]
    checked = check_images(folder, images, workers)
    reasons = [one.fault for one in checked]
    assert reasons == list(EXPECTED.values()) * 2 + ["missing"] * 600


def test_smallest_side_can_be_chosen(folder: Path) -> None:
    images = ["good.png", "dot.png", "line.png"]
    assert [one.fault for one in check_images(folder, images, 0, min_side=1)] == [None, None, None]
    assert check_images(folder, images, 0, min_side=33)[0].fault == "too small: 64×32 pixels"


def test_no_images(folder: Path) -> None:
    assert check_images(folder, [], 2) == []


def test_an_interrupted_check_goes_on(folder: Path) -> None:
    """Whatever the images now are: those of finished shards are not opened again."""
    images = [f"absent/{number}.png" for number in range(SHARD_SIZE)] + ["good.png"]

    def interrupted(root: Path, image: str) -> Checked:
        if image == "good.png":
            raise KeyboardInterrupt
        return check_image(root, image)

    store, opened = Store(folder.parent / "store"), []
    with pytest.raises(KeyboardInterrupt):
        for_each_image(store, store.root / "work", folder, images, interrupted, Checked, 0)

    def counted(root: Path, image: str) -> Checked:
        opened.append(image)
        return check_image(root, image)

    found = for_each_image(store, store.root / "work", folder, images, counted, Checked, 0)
    assert opened == ["good.png"]
    assert [one.fault for one in found] == ["missing"] * SHARD_SIZE + [None]


# Fingerprints.


def test_fingerprint_depends_on_neither_order_nor_place(folder: Path) -> None:
    images = ["good.png", "dot.png", "missing.png"]
    fingerprint = image_fingerprint(folder, images)
    assert fingerprint == image_fingerprint(folder, images[::-1] + images)
    moved = folder.resolve().rename(folder.parent / "moved")
    assert fingerprint == image_fingerprint(moved, images)


def test_fingerprint_sees_every_change(folder: Path) -> None:
    images = ["good.png", "dot.png", "missing.png"]
    seen = [image_fingerprint(folder, images), image_fingerprint(folder, images[:2])]
    os.utime(folder / "good.png", ns=(0, 1))
    seen.append(image_fingerprint(folder, images))
    (folder / "good.png").write_bytes(b"other")
    os.utime(folder / "good.png", ns=(0, 1))
    seen.append(image_fingerprint(folder, images))
    (folder / "dot.png").unlink()
    seen.append(image_fingerprint(folder, images))
    (folder / "missing.png").touch()
    seen.append(image_fingerprint(folder, images))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("make", [make_missing, make_empty])
def test_missing_image_folder(tmp_path: Path, make: Callable[[Path], None]) -> None:
    root = tmp_path / "images"
    make(root)
    for call in (lambda: check_images(root, ["a.jpg"], 0), lambda: image_fingerprint(root, ["a.jpg"])):
        with pytest.raises(PreselError, match="there is no such image folder"):
            call()


@pytest.mark.parametrize("behind", [False, True])
def test_the_size_of_a_rotated_png(tmp_path: Path, behind: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(quarters(), tmp_path / "a.png", exif=exif)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    if behind:
        last = data.index(b"IEND") - 4
        path.write_bytes(data[:start] + data[end:last] + data[start:end] + data[last:])
    assert image_size(path) == open_image(path).size == (32, 64)


@pytest.mark.parametrize("make", [make_missing, make_pipe, make_empty, make_rubbish, make_large])
def test_a_size_is_refused_as_its_image_is(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "a.png"
    make(path)
    reasons = []
    for read in (open_image, image_size):
        with pytest.raises(BrokenImage) as refused:
            read(path)
        reasons.append(refused.value.reason)
    assert reasons[0] == reasons[1]
