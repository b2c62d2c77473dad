"""`presel.select`, the short way."""

import ast
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import presel
from presel.selection import threads
from tests.pictures import picture
from tests.selection.mixtures import mixture

IMAGES = [f"image_{i:04d}.jpg" for i in range(900)]
TASKS = ["count" if i % 3 else "read" for i in range(900)]


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return mixture(900, 40, 12)


def test_the_budget_is_met_and_weights_count(features: np.ndarray) -> None:
    chosen = presel.select(IMAGES, TASKS, features=features, budget=90)
    assert len(set(chosen)) == 90
    tasks = Counter(TASKS[IMAGES.index(image)] for image in chosen)
    assert tasks == {"count": 60, "read": 30}
    weighted = presel.select(IMAGES, TASKS, features=features, budget=90, weights={"count": 1, "read": 2})
    assert Counter(TASKS[IMAGES.index(image)] for image in weighted) == {"count": 30, "read": 60}
    # Tasks in the order of their names.
    assert [TASKS[IMAGES.index(image)] for image in weighted] == ["count"] * 30 + ["read"] * 60


def test_any_order_and_any_precision_of_rows(features: np.ndarray) -> None:
    order = np.random.default_rng(0).permutation(900)
    chosen = presel.select(IMAGES, TASKS, features=features, budget=45)
    again = presel.select(
        [IMAGES[i] for i in order], [TASKS[i] for i in order], features=features[order], budget=45
    )
    assert chosen == again
    assert presel.select(IMAGES, TASKS, features=5 * features, budget=45) == chosen
    assert len(presel.select(IMAGES, TASKS, features=features.astype(np.float16), budget=45)) == 45


def test_names_do_not_matter(features: np.ndarray) -> None:
    names = [f"z{(i * 37) % 900}" for i in range(900)]
    chosen = presel.select(IMAGES, TASKS, features=features, budget=45)
    renamed = presel.select(names, TASKS, features=features, budget=45)
    assert {IMAGES.index(image) for image in chosen} == {names.index(name) for name in renamed}


@pytest.mark.parametrize("count", [1, 3])
def test_the_number_of_processors_does_not_matter(
    count: int, features: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [f"task {i % 6}" for i in range(900)]
    chosen = presel.select(IMAGES, tasks, features=features, budget=90)
    monkeypatch.setattr(threads, "cpu_count", lambda: count)
    assert presel.select(IMAGES, tasks, features=features, budget=90) == chosen


def test_a_bad_feature_names_its_image(features: np.ndarray) -> None:
    tasks = [f"task {i % 6}" for i in range(900)]
    broken = features.copy()
    broken[899] = np.nan
    with pytest.raises(ValueError, match="image_0899"):
        presel.select(IMAGES, tasks, features=broken, budget=90)


def test_columns_of_a_table_are_read_by_position(features: np.ndarray) -> None:
    table = pd.DataFrame({"image": IMAGES, "task": TASKS}).iloc[::-1]
    chosen = presel.select(table["image"], table["task"], features=features[::-1], budget=45)
    assert chosen == presel.select(IMAGES, TASKS, features=features, budget=45)


def test_any_hashable_is_an_id(features: np.ndarray) -> None:
    pairs = [(i // 30, i % 30) for i in range(900)]
    assert len(set(presel.select(pairs, TASKS, features=features, budget=45))) == 45


def test_all_and_nothing(features: np.ndarray) -> None:
    assert presel.select(IMAGES, TASKS, features=features, budget=0) == []
    assert sorted(presel.select(IMAGES, TASKS, features=features, budget=900)) == IMAGES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [], "tasks": []}, "no image"),
        ({"images": ["a"] * 900}, "the id a occurs twice"),
        ({"tasks": ["a"]}, "1 tasks for 900 images"),
        ({"features": np.ones((899, 4), np.float32)}, r"shape \(899, 4\) for 900 images"),
        ({"features": np.zeros((900, 4), np.float32)}, "row 'image_0001.jpg' is all zeros"),
        ({"budget": 901}, "budget is 901"),
        ({"budget": -1}, "budget is -1"),
        ({"budget": 1.5}, "budget is 1.5"),
        ({"budget": float("nan")}, "budget is nan"),
        ({"budget": float("inf")}, "budget is inf"),
        ({"k": 2.5}, "k is 2.5"),
        ({"features": mixture(900, 4, 3) * np.float32(1e25)}, "which float32 cannot square"),
        ({"k": 0}, "k is 0"),
        ({"k": None}, "k is None; it must be a whole number of at least 1"),
        ({"budget": "9"}, "budget is '9'; it must be a whole number of at least 0"),
        ({"weights": {"count": 1}}, "task 'read' has images and no weight"),
        ({"weights": {"count": 1, "read": 1, "sing": 1}}, "task 'sing' has a weight and no images"),
        ({"weights": {"count": 1, "read": -1}}, "weight of task 'read' is -1"),
        ({"weights": {"count": 1, "read": float("nan")}}, "weight of task 'read' is nan"),
        ({"weights": {"count": "1", "read": 1}}, "weight of task 'count' is '1'; it must be a finite number"),
        ({"weights": {"count": 1, "read": None}}, "weight of task 'read' is None; it must be a finite"),
        ({"weights": {"count": 10**400, "read": 1}}, "weight of task 'count' is 1000"),
    ],
)
def test_refusals(features: np.ndarray, change: dict[str, Any], message: str) -> None:
    given = {"images": IMAGES, "tasks": TASKS, "features": features, "budget": 10}
    with pytest.raises(ValueError, match=message):
        presel.select(**(given | change))


def test_the_built_in_encoder_is_warned_of(tmp_path: Path) -> None:
    images = [picture(tmp_path / f"{number}.png", number) for number in range(4)]
    code = f"import presel; print(presel.select({list(map(str, images))}, ['a'] * 4, budget=2))"
    # In a process of its own, where nothing has silenced the libraries.
    with_bars = {name: value for name, value in os.environ.items() if "PROGRESS_BARS" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=with_bars
    )
    assert len(ast.literal_eval(done.stdout)) == 2
    warning = "made for the built-in digit scenes, not for other images: the built-in encoder; pass"
    assert done.stderr.count(warning) == 1
    assert "Loading weights" not in done.stderr


def test_importing_is_light() -> None:
    code = (
        "import sys, presel, presel.selection, presel.importance;"
        "print({'torch', 'hydra', 'faiss', 'sklearn', 'omegaconf'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
