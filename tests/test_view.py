"""`presel view`, and the parts of the page about what runs chose."""

import base64
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from presel.commands.view import named
from presel.console.escaping import visible
from presel.report.gallery import gallery
from presel.report.lead import on_results, on_selection
from presel.report.map_data import map_data
from presel.report.near_duplicates import find_near_duplicates
from presel.report.page import PageOptions, page
from presel.report.spending import TaskSpending, requests, spending
from tests.chosen import chosen_run
from tests.helpers import TINY, Program, last_run, stage_lines
from tests.test_page import HOSTILE, Elements

IDS = [f"image {number}" for number in range(6)]


def places(ids: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"id": ids, "x": np.linspace(0, 1, len(ids)), "y": 0.5})


def unpacked(text: str) -> dict[str, Any]:
    """What the script on the page makes of the data."""
    data = json.loads(text)
    arrays = {
        name: np.frombuffer(gzip.decompress(base64.b64decode(content)), kind).tolist()
        for name, (kind, content) in data["columns"].items()
    }
    runs = [{key: arrays.get(str(value), value) for key, value in run.items()} for run in data["runs"]]
    ids = json.loads(gzip.decompress(base64.b64decode(data["ids"])))
    images = arrays[data["pictures"]["images"]]
    columns = {key: arrays[data[key]] for key in ("x", "y", "task")}
    return {**data, **columns, "ids": ids, "runs": runs, "with_picture": images, "arrays": arrays}


def test_every_image_has_its_columns(tmp_path: Path) -> None:
    ranks = [1, 2, 1, 2, np.nan, 1]
    columns = {
        "task": ["b", "b", "a", "a", "a", "b"],
        "cluster": [0, 0, 0, 0, 0, 1],
        "centrality": [0.5, 0.25, 1.0, np.nan, 0.5, 0.0],
        "rank": ranks,
        "why": [None, "central", None, "reference", None, None],
    }
    presel = chosen_run(tmp_path, IDS, [1, 3], **columns)
    other = chosen_run(tmp_path, IDS, [0], "random", **columns)
    data = unpacked(map_data({"one": presel, "two": other}, places(IDS[::-1]), pictures=100))
    assert data["ids"] == IDS[::-1]
    assert data["x"] == [0, 13107, 26214, 39321, 52428, 65535]
    assert data["tasks"] == ["a", "b"]
    assert data["task"] == [1, 0, 0, 0, 1, 1]
    one, two = data["runs"]
    # Neither has the stage that numbers clusters in each task anew.
    assert (one["by_task"], two["by_task"]) == (False, False)
    assert one["state"] == [0, 0, 1, 0, 1, 0]
    assert one["cluster"] == [1, 0, 0, 0, 0, 0]
    assert one["centrality"] == [0, 32767, 65535, 65534, 16384, 32767]
    assert one["range"] == [0, 1]
    assert one["rank"] == [1, 65535, 2, 1, 2, 1]
    assert [one["reasons"][code] for code in one["why"]] == ["", "", "reference", "", "central", ""]
    assert two["state"] == [0, 0, 0, 0, 0, 1]
    # Columns that both runs share are there once: x, y, task, two states, four others, pictures.
    assert len(data["columns"]) == 10
    assert data["with_picture"] == list(range(6))


def test_columns_of_other_kinds_are_not_drawn(tmp_path: Path) -> None:
    columns = {"cluster": "kitchen", "centrality": list("abcdef"), "rank": [None] * 6, "task_weight": "much"}
    run = chosen_run(tmp_path, IDS, [0, 1], **columns)
    (drawn,) = unpacked(map_data({"own": run}, places(IDS), pictures=9))["runs"]
    assert not {"cluster", "centrality", "rank"} & set(drawn)
    assert "chosen (2)" in page("Own", {"own": run}, places(IDS), PageOptions())


def test_numbers_that_cannot_be_drawn_are_none(tmp_path: Path) -> None:
    columns = {
        "cluster": [-1, 0, 1, 70_000, np.nan, np.inf],
        "centrality": [-np.inf, 0, np.inf, 2, np.nan, 1],
    }
    run = chosen_run(tmp_path, IDS, [0, 1], **columns)
    (drawn,) = unpacked(map_data({"own": run}, places(IDS), pictures=9))["runs"]
    assert drawn["cluster"] == [65535, 0, 1, 65535, 65535, 65535]
    assert drawn["range"] == [0, 2]
    assert drawn["centrality"] == [65535, 0, 65535, 65534, 65535, 32767]
    assert "cluster 0, 1 images" in page("Own", {"own": run}, places(IDS), PageOptions())


def test_pictures_are_those_of_chosen_images_and_some_others(tmp_path: Path) -> None:
    ids = [str(number) for number in range(100)]
    run = chosen_run(tmp_path, ids, range(40))
    shown = unpacked(map_data({"one": run}, places(ids), pictures=20))["with_picture"]
    assert len(shown) == len(set(shown)) == 20
    assert sum(image < 40 for image in shown) == 15
    few = unpacked(map_data({"one": run}, places(ids), pictures=95))["with_picture"]
    assert set(range(40)) <= set(few)


def test_names_cannot_leave_the_data(tmp_path: Path) -> None:
    run = chosen_run(tmp_path, HOSTILE, [0], task=HOSTILE, why=HOSTILE)
    text = map_data({HOSTILE[0]: run}, places(HOSTILE), pictures=9)
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert unpacked(text)["ids"] == HOSTILE


def test_names_are_text_on_the_whole_page(tmp_path: Path) -> None:
    columns = {"cluster": 0, "centrality": 0.5, "rank": 1.0, "task_weight": 0.125}
    run = chosen_run(tmp_path, HOSTILE, range(4), task=HOSTILE, **columns)
    text = page(HOSTILE[0], {HOSTILE[2]: run}, places(HOSTILE), PageOptions())
    found = Elements(text)
    assert found.tags.count("script") == 2
    assert not [key for key, _ in found.attributes if key.startswith("on")]
    for name in HOSTILE:
        assert visible(name) in found.text
    assert all(character.isprintable() or character == "\n" for character in text)


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    run = chosen_run(tmp_path, IDS, [0, 1], cluster=0, centrality=np.linspace(0, 1, 6), rank=1.0)
    one, other = (page("A", {"presel": run}, places(IDS), PageOptions()) for _ in range(2))
    assert one == other


def test_tasks_are_in_the_order_of_what_they_get_for_their_size(tmp_path: Path) -> None:
    run = chosen_run(tmp_path, IDS, [0, 1, 4], task=["a", "b", "a", "a", "b", "a"])
    rows = spending(run)
    assert [(row.task, row.images, row.chosen) for row in rows] == [("b", 2, 2), ("a", 4, 1)]
    assert [row.share for row in rows] == pytest.approx([2 / 3, 1 / 3])
    assert [row.pool_share for row in rows] == pytest.approx([1 / 3, 2 / 3])
    assert rows[0].weight is None
    assert requests(run).to_numpy().tolist() == [
        ["still to be requested for the selection", "3", "50.0"],
        ["all", "3", "50.0"],
    ]


def task(name: str, share: float, irs: float, error: float) -> TaskSpending:
    return TaskSpending(name, 3, 1, 0.5, share, 0.5, samples=4, irs=irs, error=error, drawing="")


def test_the_first_lines_say_what_was_chosen_and_how_sure_it_is(tmp_path: Path) -> None:
    run = chosen_run(tmp_path, IDS, [0, 1, 4])
    tasks = [task("a", 0.7, 0.5, 0.1), task("b", 0.3, 0.9, 0.3)]
    chose, where, sure = on_selection("presel", run, tasks)
    assert chose == "presel chose 3 of 6 images (50.0 %) in 2 tasks."
    assert where == (
        "For its size, most goes to a (70.0 % of the choice, 50.0 % of the pool), "
        "least to b (30.0 % of the choice, 50.0 % of the pool)."
    )
    # 0.5 and 0.9 are 0.2 from their mean.
    assert sure.startswith("Of 8 reference samples, the mean IRS of 0 of 2 tasks is more than two standard")
    even = [task("a", 0.5, 0.5, 0.1), task("b", 0.5, 0.9, 0.3)]
    assert on_selection("presel", run, even)[1] == "Every task gets its share of the pool."
    assert "of 1 of 2 tasks" in on_selection("presel", run, [task("a", 1, 0.5, 0.09), tasks[1]])[2]


def test_the_first_lines_tell_differences_from_chance(tmp_path: Path) -> None:
    run = chosen_run(tmp_path, IDS, [0])
    groups = {name: [replace(run, seed=seed) for seed in range(5)] for name in ("good", "bad", "so so")}
    results = pd.DataFrame(
        {
            "setting": list(groups),
            "common_seeds": 5,
            "difference": [0.02, -0.03, 0.001],
            "t_low": [0.01, -0.04, -0.01],
            "t_high": [0.03, -0.02, 0.012],
            "p_holm": [0.01, 0.02, 0.8],
        }
    )
    said = on_results(groups, results)
    assert said == [
        "3 settings on a pool of 6 images, seeds 0, 1, 2, 3, 4.",
        "Significantly better than random selection: good (+2.0 points, 95 % interval +1.0 to +3.0).",
        "Significantly worse than random selection: bad (-3.0 points, 95 % interval -4.0 to -2.0).",
        "Not significantly different from random selection: so so (+0.1 points, 95 % interval -1.0 to +1.2).",
    ]
    (*_, few) = on_results(groups, results.assign(common_seeds=2))
    assert few.startswith("Too few seeds to test these differences from random selection: good")
    # Whatever it is called, the full pool is not chosen.
    full = groups | {"so so": [replace(run, strategy="full") for run in groups["so so"]]}
    assert on_results(full, results) == said[:3]
    (*_, none) = on_results(groups, results[["setting"]])
    assert none == "Not compared with random selection: no runs of strategy=random."
    (*_, apart) = on_results(groups | {"random": [replace(run, strategy="random")]}, results[["setting"]])
    assert apart.endswith("no runs of strategy=random share their budget, conditions and a seed.")


def test_near_duplicates_among_the_chosen_are_shown(tmp_path: Path) -> None:
    run = chosen_run(tmp_path, IDS, [0, 1, 2, 3], task=["a", "a", "b", "a", "a", "a"])
    for copy in (1, 2, 4):
        Image.open(tmp_path / "images" / "0.png").save(tmp_path / "images" / f"{copy}.png")
    (found,) = find_near_duplicates({"presel": run}).values()
    # One copy is in another task, and one was not chosen.
    assert [[one.name for one in row.pictures] for row in found.rows] == [["image 0", "image 1"]]
    assert found.sentence.startswith(
        "Of what presel chose, 2 show nearly the same as another one of their task"
    )
    assert find_near_duplicates({"full": chosen_run(tmp_path, IDS, range(6))}) == {}


def test_records_are_alike_by_all_their_images(tmp_path: Path) -> None:
    """As `pool.near_duplicates` compares them."""
    run = chosen_run(tmp_path, IDS, [0, 1, 2])
    for copy in (1, 2):
        Image.open(tmp_path / "images" / "0.png").save(tmp_path / "images" / f"{copy}.png")
    # Each of the three has a second image, that of the last differs.
    second = {0: "3.png", 1: "3.png", 2: "4.png"}
    rows = [(record, image, image) for record, other in second.items() for image in (f"{record}.png", other)]
    table = pd.DataFrame(rows, columns=["record", "image", "content"])
    table.to_parquet(tmp_path / "pool" / "several_images.parquet")
    (found,) = find_near_duplicates({"presel": run}).values()
    assert [[one.name for one in row.pictures] for row in found.rows] == [["image 0", "image 1"]]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [chosen_run(tmp_path / name / "photos", IDS, [0]) for name in ("first", "second")]
    runs[1].stages["images"] = runs[0].stages["images"]
    assert list(named(runs)) == ["presel first/photos", "presel second/photos"]
    other = replace(runs[1], strategy="random", folder=runs[0].folder)
    assert list(named([runs[0], other])) == ["presel", "random"]


def test_clusters_are_shown_with_their_center(tmp_path: Path) -> None:
    centrality = [0.1, 0.9, 0.5, 0.7, np.nan, 0.3]
    run = chosen_run(tmp_path, IDS, [1, 4], cluster=[0, 0, 0, 0, 0, 1], centrality=centrality)
    rows = gallery({"presel": run}, 2)["vqa"]
    assert [row.heading for row in rows] == [
        *("cluster 0, 5 images: most central", "chosen (2)", "left out (3)"),
        *("cluster 1, 1 images: most central", "chosen (0)", "left out (1)"),
    ]
    assert [[one.name.split(",")[0] for one in row.pictures] for row in rows] == [
        *(["image 1", "image 3", "image 2", "image 0"], ["image 1", "image 4"], ["image 3", "image 0"]),
        *(["image 5"], [], ["image 5"]),
    ]


def test_a_run_is_viewed_and_its_images_are_encoded_if_need_be(in_process: Program, tmp_path: Path) -> None:
    in_process.succeeds("run", *TINY, "strategy=random", "until=selection")
    run = last_run(tmp_path)
    assert "features" not in run.stages
    result = in_process.succeeds("view", str(run.folder), "--no-open")
    assert result.stdout.splitlines()[-1].endswith("view.html")
    text = (run.folder / "view.html").read_text()
    assert "random chose 30 of 200 images (15.0 %) in 10 tasks." in text
    assert "No model was tuned on this choice" in text
    assert "--out=outputs is a folder; name a file" in in_process.refuses(
        "view", str(run.folder), "--out", "outputs"
    )
    written = str(run.folder / "view.html")
    assert "is a file; name a folder" in in_process.refuses("report", str(run.folder), "--out", written)
    # The map is that of any run on the pool.
    in_process.succeeds("run", *TINY, "until=selection")
    both = in_process.succeeds("view", str(last_run(tmp_path).folder), str(run.folder), "--no-open")
    assert stage_lines(both.stdout)["map"] == "reused"
    in_process.succeeds("report", str(run.folder), "--title", "Choices")
    report = (tmp_path / "outputs" / "report" / "report.html").read_text()
    assert 'id="map-data"' in report
    assert (
        (tmp_path / "outputs" / "report" / "table.md").read_text().startswith("| setting | seeds | images |")
    )
    in_process.succeeds("run", *TINY, "pool.size=210", "strategy=random", "until=selection")
    other = last_run(tmp_path)
    assert "on different pools" in in_process.refuses("view", str(run.folder), str(other.folder))
    (run.folder / ".hydra" / "config.yaml").write_text((other.folder / ".hydra" / "config.yaml").read_text())
    assert "cannot be found as it was" in in_process.refuses("view", str(run.folder))
