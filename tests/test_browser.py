"""The page of `presel view` in a real browser."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

import presel
from presel.commands.view import main
from presel.console.escaping import visible
from presel.data.exclusion import without_excluded
from presel.data.listing import Item, Listing
from presel.report.page import PageOptions
from presel.report.page import page as written
from presel.runs import RunRecord
from tests.chosen import chosen_run
from tests.helpers import TINY
from tests.test_page import HOSTILE

pytestmark = pytest.mark.browser

Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Opens a file, and says at the end of the test if it sent a request or met an error."""
    contexts, faults = [], []

    def open_page(file: Path, width: int = 1600, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: faults.append(request.url) if _leaves(request.url, file) else None)
        page.goto(file.as_uri())
        page.locator("#map-legend li").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def _leaves(url: str, file: Path) -> bool:
    return url != file.as_uri() and not url.startswith(("data:", "blob:"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shared_store: Path) -> list[RunRecord]:
    folder = tmp_path_factory.mktemp("runs")
    return [
        presel.run(
            [
                *(*TINY, f"strategy={strategy}", "until=selection"),
                *(f"paths.store={shared_store}", f"hydra.run.dir={folder / strategy}"),
            ]
        )
        for strategy in ("presel", "random")
    ]


@pytest.fixture(scope="module")
def view(runs: list[RunRecord]) -> Path:
    """The page that compares both runs."""
    assert main([*(str(run.folder) for run in runs), "--no-open"]) == 0
    return runs[0].folder / "view.html"


class Drawn(NamedTuple):
    """The map as it is drawn: pixels unlike the paper, the first of them, the paper, a sum over all."""

    count: int
    column: int
    row: int
    paper: int
    digest: int


def drawn(page: Any) -> Drawn:
    found = page.evaluate(
        """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
          const canvas = document.getElementById("map-canvas");
          const image = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          const pixels = new Uint32Array(image.data.buffer);
          let [count, first, digest] = [0, -1, 0];
          for (let i = 0; i < pixels.length; i++) {
            digest = (Math.imul(digest, 31) + pixels[i]) | 0;
            if (pixels[i] === pixels[0]) continue;
            count++;
            if (first < 0) first = i;
          }
          done([count, first % image.width, Math.floor(first / image.width), pixels[0] & 255, digest]);
        })))"""
    )
    return Drawn(*found)


def drag(page: Any, corners: list[tuple[float, float]]) -> None:
    """Draws a lasso, in shares of the map's width and height."""
    box = page.locator("#map-canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.keyboard.down("Shift")
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=3)
    page.mouse.up()
    page.keyboard.up("Shift")


WHOLE = [(0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99)]


def test_points_are_drawn_and_colors_can_be_hidden(opened: Open, view: Path) -> None:
    page = opened(view)
    before = drawn(page)
    assert before.count > 1000
    page.get_by_role("button", name="in neither").click()
    hidden = drawn(page)
    assert hidden.count < before.count
    page.select_option("#map-color", "task")
    assert drawn(page).digest != hidden.digest


@pytest.mark.parametrize(("width", "scheme", "paper"), [(800, "dark", 20), (1600, "light", 255)])
def test_screens_of_any_width_in_light_and_dark(
    width: int, scheme: str, paper: int, opened: Open, view: Path
) -> None:
    page = opened(view, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert drawn(page).paper == paper


def test_hovering_shows_the_picture_and_what_is_known(opened: Open, view: Path) -> None:
    page = opened(view)
    assert page.locator("#map-card").is_hidden()
    first = drawn(page)
    box = page.locator("#map-canvas").bounding_box()
    page.mouse.move(box["x"] + first.column + 1, box["y"] + first.row + 1)
    card = page.locator("#map-card")
    card.wait_for()
    assert "url(" in card.locator(".picture").evaluate("(one) => getComputedStyle(one).backgroundImage")
    assert re.search(r"/\d{6}\n*task", card.inner_text())
    assert {"selection", "cluster"} <= set(card.locator("dt").all_inner_texts())


def test_the_lasso_lists_ids_to_copy(opened: Open, view: Path, runs: list[RunRecord]) -> None:
    page = opened(view)
    drag(page, WHOLE)
    assert page.locator("#map-count").inner_text().startswith("200 listed, 5")
    assert set(page.locator("#map-ids").input_value().split("\n")) == set(runs[0].pool["id"])
    assert page.locator("#map-listed button").count() == 120
    with page.expect_download() as download:
        page.click("#map-save")
    assert len(Path(download.value.path()).read_text().splitlines()) == 200
    drag(page, [(0.01, 0.01), (0.02, 0.01), (0.02, 0.02)])
    assert page.locator("#map-count").inner_text() == "No image listed"


def test_runs_are_switched_and_compared(opened: Open, view: Path, runs: list[RunRecord]) -> None:
    page = opened(view)
    one, other = (set(run.chosen["id"]) for run in runs)

    def legend() -> list[str]:
        return [" ".join(text.split()) for text in page.locator("#map-legend li").all_inner_texts()]

    assert legend() == [
        f"in neither {200 - len(one | other)}",
        f"only in presel {len(one - other)}",
        f"only in random {len(other - one)}",
        f"in both {len(one & other)}",
    ]
    compared = drawn(page)
    page.select_option("#map-second", "")
    reference = len(runs[0].reference_ids)
    assert legend() == ["not chosen 170", f"chosen {30 - reference}", f"reference set {reference}"]
    page.select_option("#map-first", label="random")
    assert legend() == ["not chosen 170", "chosen 30"]
    assert "centrality" not in page.locator("#map-color option").all_inner_texts()
    assert drawn(page).digest != compared.digest


def test_keys_go_from_image_to_image(opened: Open, view: Path) -> None:
    page = opened(view)
    page.focus("#map-canvas")
    page.keyboard.press("ArrowRight")
    first = page.locator("#map-card .id").inner_text()
    page.keyboard.press("ArrowUp")
    second = page.locator("#map-card .id").inner_text()
    assert first != second
    page.keyboard.press("Enter")
    assert page.locator("#map-ids").input_value() == second
    page.keyboard.press("Shift+V")
    assert page.locator("#map-count").inner_text().startswith("200 listed")
    before = drawn(page)
    page.keyboard.press("Escape")
    page.keyboard.press("+")
    assert page.locator("#map-count").inner_text() == "No image listed"
    assert drawn(page).digest != before.digest


def test_listed_ids_exclude_those_records_and_no_others(opened: Open, tmp_path: Path) -> None:
    ids = [*HOSTILE, "#h[1]", "#h1", "#*", "#", "#?[", "##", "a[1]", "a1", "*", "!]"]
    run = chosen_run(tmp_path, ids, [0])
    places = pd.DataFrame({"id": ids, "x": np.linspace(0, 1, len(ids)), "y": 0.5})
    file = tmp_path / "view.html"
    file.write_text(written("Ids", {"presel": run}, places, PageOptions()), encoding="utf-8")
    page = opened(file)
    listing = Listing([Item(name, f"{number}.png", "vqa") for number, name in enumerate(ids)])
    for name in ids:
        page.evaluate(
            "id => Object.assign(document.getElementById('map-find'), { value: id }).onchange()", name
        )
        # All whose ids hold this one, of which it is the first that was asked for.
        listed = page.locator("#map-ids").input_value().split("\n")
        wanted = [one for one in ids if name.lower() in one.lower()]
        line = listed[wanted.index(name)]
        # Behind a comment, since a file that begins with <script> is refused as a web page.
        (tmp_path / "ids.txt").write_text(f"# listed\n{line}\n", encoding="utf-8")
        excluded = without_excluded(listing, tmp_path / "ids.txt").excluded
        assert [item.id for item in excluded] == [name]


def test_a_browser_that_cannot_draw_the_map_says_so(browser: Any, view: Path) -> None:
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(view.as_uri())
    status = page.locator("#map-status")
    status.filter(has_text="The map cannot be drawn").wait_for()
    assert "DecompressionStream" in status.inner_text()
    page.close()


def test_clusters_and_ranks_are_reported_as_their_strategy_means_them(opened: Open, tmp_path: Path) -> None:
    ids = ["one", "two", "three"]
    columns = {"task": ["a", "b", "b"], "rank": [1, np.nan, 2]}
    spanning = chosen_run(tmp_path / "spanning", ids, [0, 2], cluster=0, **columns)
    inside = replace(spanning, stages=spanning.stages | {"clusters": spanning.stages["selection"]})
    without = chosen_run(tmp_path / "without", ids, [0, 2], **columns)
    places = pd.DataFrame({"id": ids, "x": [0, 0.5, 1], "y": 0.5})

    def card(run: RunRecord) -> dict[str, str]:
        file = run.folder / "view.html"
        file.write_text(written("Own", {"own": run}, places, PageOptions()), encoding="utf-8")
        page = opened(file)
        page.focus("#map-canvas")
        for _ in ids:
            page.keyboard.press("ArrowRight")
        assert page.locator("#map-card .id").inner_text() == "three"
        names, values = (page.locator(f"#map-card {tag}").all_inner_texts() for tag in ("dt", "dd"))
        return dict(zip(names, values, strict=True))

    assert card(spanning)["cluster"] == "0, of whose 3 images 2 are chosen"
    assert card(inside)["cluster"] == "0, of whose 2 images 1 are chosen"
    assert card(inside)["rank"] == "2 in its cluster"
    assert card(without)["rank"] == "2, in the order of choosing"


def test_hostile_names_are_text(opened: Open, tmp_path: Path) -> None:
    ids = [*HOSTILE, "#first", "plain"]
    columns = {"task": HOSTILE + HOSTILE[:2], "why": HOSTILE[0], "cluster": 0, "centrality": 0.5, "rank": 1}
    run = chosen_run(tmp_path, ids, range(len(ids)), **columns)
    places = pd.DataFrame({"id": ids, "x": np.linspace(0, 1, len(ids)), "y": 0.5})
    file = tmp_path / "view.html"
    shown = {HOSTILE[2]: run, HOSTILE[0]: run}
    file.write_text(written(HOSTILE[0], shown, places, PageOptions()), encoding="utf-8")
    page = opened(file)
    drag(page, WHOLE)
    lines = page.locator("#map-ids").input_value().split("\n")
    assert set(lines) == {*HOSTILE, "[#]first", "plain"}
    page.focus("#map-canvas")
    for _ in ids:
        page.keyboard.press("ArrowRight")
        name = page.locator("#map-card .id").inner_text()
        assert name in map(visible, ids)
    assert page.locator("script").count() == 2
