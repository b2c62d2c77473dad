"""Images as data URLs."""

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from presel.data.decoding import BrokenImage
from presel.instructions import pictures


def picture(width: int = 24, height: int = 16) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def data_url(path: Path, side: int | None) -> str:
    return pictures.data_url(path.read_bytes(), path, side)


def decoded(url: str) -> tuple[str, bytes]:
    head, content = url.split(",")
    return head, base64.b64decode(content)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("a.jpg", "data:image/jpeg;base64"),
        ("a.png", "data:image/png;base64"),
        ("a.webp", "data:image/webp;base64"),
        ("a.gif", "data:image/gif;base64"),
    ],
)
def test_what_every_service_shows_is_sent_as_it_is(name: str, head: str, tmp_path: Path) -> None:
    picture().save(tmp_path / name)
    assert decoded(data_url(tmp_path / name, 24)) == (head, (tmp_path / name).read_bytes())


def test_garbled_exif_is_sent_along(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", exif=b"Exif\0\0rubbish")
    assert decoded(data_url(tmp_path / "a.jpg", None))[1] == (tmp_path / "a.jpg").read_bytes()


@pytest.mark.parametrize("name", ["a.bmp", "rotated.jpg", "cmyk.jpg", "moving.gif"])
def test_everything_else_is_sent_as_it_looks(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if name == "rotated.jpg":
        exif = Image.Exif()
        exif[0x0112] = 6
        picture().save(file, exif=exif)
    elif name == "cmyk.jpg":
        picture().convert("CMYK").save(file)
    elif name == "moving.gif":
        picture().save(file, save_all=True, append_images=[picture().rotate(180)])
    else:
        picture().save(file)
    head, content = decoded(data_url(file, None))
    assert head == "data:image/jpeg;base64"
    with Image.open(BytesIO(content)) as sent:
        assert sent.size == ((16, 24) if name == "rotated.jpg" else (24, 16))
        assert sent.mode == "RGB"


def test_an_animation_cut_off_anywhere_is_sent_as_it_looks_or_named(tmp_path: Path) -> None:
    whole, file = tmp_path / "whole.gif", tmp_path / "cut.gif"
    picture().save(whole, save_all=True, append_images=[picture().rotate(angle) for angle in (90, 180)])
    content = whole.read_bytes()
    sent = []
    for length in range(1, len(content), 7):
        file.write_bytes(content[:length])
        try:
            sent.append(decoded(data_url(file, None))[0])
        except BrokenImage:
            continue
    assert "data:image/jpeg;base64" in sent


def test_long_images_are_shrunk(tmp_path: Path) -> None:
    picture(400, 100).save(tmp_path / "a.png")
    _, content = decoded(data_url(tmp_path / "a.png", 100))
    with Image.open(BytesIO(content)) as sent:
        assert sent.size == (100, 25)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(BrokenImage, match=r"a\.png: a text file, not an image"):
        data_url(tmp_path / "a.png", None)
