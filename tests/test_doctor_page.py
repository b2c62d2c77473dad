"""The page of `presel doctor`: what was found, as pictures, and inert whatever the names are."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import ExifTags, Image

from presel.doctor.diagnosis import Diagnosis
from presel.doctor.findings import Finding
from presel.doctor.printing import totals
from tests.helpers import Program, record
from tests.test_page import HOSTILE, Elements


def noise(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC)


@pytest.fixture
def pool(tmp_path: Path) -> list[str]:
    """Overrides of a pool of 20 pictures with a broken one, a near-duplicate, and an odd one."""
    images = tmp_path / "images"
    images.mkdir()
    records = [record(number) for number in range(22)]
    for number in range(20):
        noise(number).save(images / f"{number:04}.png")
    noise(3).resize((40, 30)).save(images / "0020.png")
    (images / "0021.png").write_bytes(b"<html>404</html>")
    records += [record(22, id=name, task=HOSTILE[0]) for name in HOSTILE if name.isprintable()]
    noise(22).resize((400, 20)).save(images / "0022.png")
    records.append(record(23, id="#wide[1]"))
    noise(23).resize((400, 20)).save(images / "0023.png")
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    noise(19).save(images / "0019.png", exif=turned)
    (tmp_path / "pool.json").write_text(json.dumps(records))
    settings = ["pool=llava_json", f"pool.annotations={tmp_path}/pool.json", f"pool.images={images}"]
    return [*settings, "executor.workers=0", "strategy=random", "until=selection"]


def test_findings_are_shown_as_pictures_and_names_are_text(in_process: Program, pool: list[str]) -> None:
    assert in_process("doctor", *pool, "--html", "found.html").returncode == 1, "a broken image is a fault"
    page = (in_process.folder / "found.html").read_text()
    found = Elements(page)
    assert "Faults stop a run on this pool, or leave images out of it: 2 faults, " in found.text
    assert "a web page" in found.text, "why an image is broken"
    assert "Near-duplicates (1 group)" in found.text
    assert "2 records: 0003, 0020" in found.text
    assert "pool.near_duplicates=keep_one" in found.text
    assert "long and narrow: 2" in found.text
    tiny, lines = re.findall("<textarea[^>]*>(.*?)</textarea>", page, re.DOTALL)
    assert tiny == lines, "both pictures are 20 pixels high"
    assert "[#]wide[[]1]" in html.unescape(lines).splitlines()
    # Behind a comment, since a file that begins with <script> is refused as a web page.
    (in_process.folder / "odd.txt").write_text(f"# odd\n{html.unescape(lines)}")
    assert "rotated by EXIF: 1" not in found.text, "it needs no remedy"
    settings = [*pool, "pool.exclude=odd.txt", "--html", "left.html"]
    assert in_process("doctor", *settings).returncode == 1
    assert "long and narrow" not in (in_process.folder / "left.html").read_text()
    shown = [value for key, value in found.attributes if key == "title"]
    assert {"0003.png", "0020.png", "0022.png"} <= set(shown)
    assert "free of charge" in found.text
    assert not {"script", "iframe"} & set(found.tags)
    addresses = [value or "" for key, value in found.attributes if key in ("src", "href")]
    assert addresses
    assert all(address.startswith("data:") for address in addresses)


def test_a_sound_pool_has_a_page_too(in_process: Program, pool: list[str]) -> None:
    settings = [
        *pool,
        "pool.exclude=out.txt",
        "pool.near_duplicates=keep_one",
        "cluster.images_per_cluster=2",
    ]
    lines = ["0021", *(name for name in HOSTILE if name.isprintable())]
    (in_process.folder / "out.txt").write_text("\n".join(lines))
    in_process.succeeds("doctor", *settings, "--html", "found.html")
    text = Elements((in_process.folder / "found.html").read_text()).text
    assert "Broken images" not in text
    assert "Near-duplicates (" not in text
    assert "1 records are left out by pool.near_duplicates" in text


def test_one_finding_is_counted_in_the_singular() -> None:
    found = [Finding("fault", "truncated", "'a'"), *[Finding("note", "frames", "'b'")] * 2]
    nothing = {"text_only": 0, "text_only_kept": 0, "excluded": 0, "near_duplicates": 0}
    diagnosis = Diagnosis(
        images=Path("images"), table=pd.DataFrame(), findings=found, plan=None, times=[], **nothing
    )
    assert totals(diagnosis) == "1 fault, 0 warnings, 2 notes"
