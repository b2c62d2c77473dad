"""Strategies from outside the package, one with a stage and one in rounds: docs/how_to/own_stage.md."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from presel import compose
from presel.component import component
from presel.errors import PreselError
from presel.pipeline import Pipeline
from presel.settings.schema import build
from presel.storage.stage import Stage
from presel.storage.store import Store
from presel.strategies.random import Random
from tests.documents import blocks
from tests.helpers import OWN_STORE, Program, last_run, stage_lines

PAGE = Path(__file__).parent.parent / "docs" / "how_to" / "own_stage.md"


@pytest.fixture
def run(in_process: Program, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Runs one of the page's commands on a small pool; gives the stage lines."""
    texts = blocks(PAGE)
    for language, text in texts:
        if language:
            file = tmp_path / text.splitlines()[0].removeprefix("# ")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    commands = [text for language, text in texts if not language]

    def run(*overrides: str, example: int = 0) -> dict[str, str]:
        for module in ("sharpest", "hardest"):
            sys.modules.pop(module, None)
        small = ("pool.size=40", "executor.workers=0", OWN_STORE, *overrides)
        return stage_lines(in_process.succeeds(*shlex.split(commands[example])[1:], *small).stdout)

    return run


def test_its_stage_is_computed_once_and_again_when_its_text_changes(
    run: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    assert run()["sharpness"] == "computed"
    record = last_run(tmp_path)
    assert list(record.stages) == ["images.scenes", "images", "sharpness", "selection"]
    table = record.selection
    chosen = table["selected"]
    assert chosen.sum() == 6
    assert table.loc[chosen, "sharpness"].min() >= table.loc[~chosen, "sharpness"].max()
    assert not (tmp_path / "outputs" / "store" / "instructions").exists()
    assert set(run().values()) == {"reused"}
    other = run("strategy.side=32")
    assert (other["pool"], other["sharpness"]) == ("reused", "computed")
    module = tmp_path / "sharpest.py"
    module.write_text(module.read_text().replace("np.square(", "np.abs("))
    changed = run()
    assert {label: changed[label] for label in ("pool", "sharpness", "selection (sharpest)")} == {
        "pool": "reused",
        "sharpness": "computed",
        "selection (sharpest)": "computed",
    }


def test_the_strategy_in_rounds_runs_as_the_page_says(
    run: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    # The reference set has an image of each of ten tasks.
    lines = run("budget=25", example=1)
    assert lines["instructions (round 2)"] == lines["selection (hardest)"] == "computed"
    record = last_run(tmp_path)
    table = record.selection[record.selection["selected"]]
    assert table["round"].value_counts().to_dict() == {0: 10, 1: 5, 2: 5, 3: 5}
    assert table["loss_after"].notna().tolist() == table["round"].isin([1, 2]).tolist()
    assert "round_2.after" in record.stages
    assert set(run("budget=25", example=1).values()) == {"reused"}


@component
class Clashing(Random):
    """Names its stage like one of the pipeline's."""

    def stages(self, pipeline: Pipeline) -> dict[str, Stage[Any]]:
        return {"features": pipeline.images}


@component
class ClashingField(Random):
    """Names its stage like a field of the pipeline without a default."""

    def stages(self, pipeline: Pipeline) -> dict[str, Stage[Any]]:
        return {"budget": pipeline.images}


@component
class Mistaken(Random):
    """Needs what there is not."""

    needs = ("feature",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Clashing", "Clashing.stages names 'features', which is a name of the pipeline; rename it"),
        ("ClashingField", "ClashingField.stages names 'budget', which is a name of the pipeline; rename it"),
        ("Mistaken", "Mistaken.needs names 'feature'; it may hold features, clusters, reference, relevance"),
    ],
)
def test_a_wrong_name_is_refused(in_process: Program, name: str, message: str) -> None:
    error = in_process.refuses(
        "run", "strategy=random", f"strategy._target_=tests.test_own_stage.{name}", "until=selection"
    )
    assert message in error


@dataclass(frozen=True, kw_only=True)
class Part(Stage[int]):
    """Does nothing."""

    name: ClassVar[str] = "part"

    inputs_of: tuple[Stage[Any], ...] = ()
    number: int = 0

    def compute(self, store: Store, folder: Path) -> None: ...

    def load(self, folder: Path) -> int:
        return self.number


@component
class Nested(Random):
    """Has a stage that reads two others of one name."""

    def stages(self, pipeline: Pipeline) -> dict[str, Stage[Any]]:
        return {"whole": Part(inputs_of=(Part(number=1), Part(number=2)))}


def test_every_stage_has_a_role_of_its_own(in_process: Program, tmp_path: Path) -> None:
    target = "strategy._target_=tests.test_own_stage.Nested"
    in_process.succeeds("run", "strategy=random", target, "until=selection", "pool.size=40", OWN_STORE)
    second = f"whole.part.{Part(number=2).key}"
    roles = ["images.scenes", "images", "whole.part", second, "whole", "selection"]
    assert list(last_run(tmp_path).stages) == roles


@component
class Borrowing(Random):
    """Reads a stage of the pipeline by another name."""

    def stages(self, pipeline: Pipeline) -> dict[str, Stage[Any]]:
        return {"mine": pipeline.features}


def test_a_stage_of_the_pipeline_keeps_its_role() -> None:
    target = "strategy._target_=tests.test_own_stage.Borrowing"
    pipeline = build(compose(["strategy=random", target, "pool.size=40", "trainer=cpu"]))
    assert list(pipeline.steps(pipeline.selection)) == ["images.scenes", "images", "features", "selection"]


def test_a_field_that_no_key_can_hold_is_named() -> None:
    odd = Part(inputs_of=(), number={1})  # type: ignore[arg-type]
    with pytest.raises(PreselError, match="a field holds a set, which cannot be part of a stage's key; make"):
        assert odd.key
