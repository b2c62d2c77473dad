"""Parts of HTML pages: escaped names, thumbnails, sheets of them."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from presel.console.escaping import visible
from presel.page import Picture, PictureRow, picture, sheets
from presel.page import pictures as module
from presel.page.rendering import environment

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</script><script>alert(1)</script>",
    "\u202egnp.exe",
    "\x1b]0;title\x07",
    '=HYPERLINK("http://a.example")',
    "{{ 7 * 7 }}",
    "x" * 300,
]


class Elements(HTMLParser):
    """Tags and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text(name: str) -> None:
    template = environment().from_string(
        '{% extends "page/base.html" %}{% from "page/parts.html" import groups, pictures, table %}'
        "{% block content %}{{ table(frame) }}{{ pictures(rows) }}{{ groups(rows) }}{% endblock %}"
    )
    rows = [PictureRow(name, [Picture("", name), Picture("data:image/webp;base64,", name)])]
    page = template.render(title=name, frame=pd.DataFrame({name: [name]}), rows=rows)
    found = Elements(page)
    assert not {"script", "iframe"} & set(found.tags)
    assert found.tags.count("img") == 2
    assert not [key for key, _ in found.attributes if key.startswith("on")]
    assert found.text.count(visible(name)) == 6
    assert ("alt", visible(name)) in found.attributes
    assert all(character.isprintable() or character == "\n" for character in page)
    addresses = [value or "" for key, value in found.attributes if key in ("src", "href")]
    assert all(address.startswith("data:") for address in addresses)


def opened(uri: str) -> Image.Image:
    kind, _, content = uri.partition(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_thumbnails_keep_their_proportions_and_broken_images_their_name(tmp_path: Path) -> None:
    Image.new("RGB", (400, 100), (200, 0, 0)).save(tmp_path / "long.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    assert opened(picture(tmp_path / "long.png", "long").uri).size == (96, 24)
    assert picture(tmp_path / "broken.png", "b") == Picture("", "b")


def test_sheets_have_every_image_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHEET", 40)
    for number in range(45):
        Image.new("RGB", (32, 32), (5 * number, 100, 0)).save(tmp_path / f"{number}.png")
    names = [f"{number}.png" for number in range(45)] + ["missing.png"]
    found = sheets(tmp_path, names, side=16)
    assert found == sheets(tmp_path, names, side=16, workers=2)
    pictures = [np.asarray(opened(uri)).astype(int) for uri in found.uris]
    assert [one.shape for one in pictures] == [(32, 512, 4), (16, 512, 4)]
    for number in range(45):
        sheet, (row, column) = pictures[number // 40], divmod(number % 40, 32)
        center = sheet[row * 16 + 8, column * 16 + 8]
        assert center[:2] == pytest.approx([5 * number, 100], abs=12)
    # The last place is empty.
    assert pictures[1][8, 5 * 16 + 8, 3] == 0
