"""Learning gains: a model tuned without a sample scores it, and nothing more is bought."""

import json
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest

from presel.component import component
from presel.errors import PreselError
from presel.instructions.annotations import Annotations
from presel.runs import StageRecord
from presel.stages.instructions import InstructionsStage
from presel.stages.learning_gain import ReferenceHalfStage
from presel.stages.pool import PoolStage
from presel.stages.reference import ReferenceStage
from presel.storage.store import Store
from presel.strategies.base import SelectionContext, Strategy
from tests.helpers import Program, last_run, on_folder, read_records


@component
class Gaining(Strategy):
    """Chooses what taught most."""

    needs: ClassVar[tuple[str, ...]] = ("learning_gain",)

    def select(self, context: SelectionContext) -> pd.DataFrame:
        gains = context.learning_gain
        return gains.assign(selected=gains["loss_tuned"] < gains["loss_base"])


RUN = ("strategy=random", "strategy._target_=tests.test_learning_gain.Gaining", "until=selection")
SHARE = ("reference.share=0.2", "budget=0.5")


def test_every_reference_sample_is_scored_by_a_model_that_never_saw_it(
    in_process: Program, pool_folder: Path
) -> None:
    in_process.succeeds("run", *on_folder(pool_folder), *RUN, *SHARE)
    stages = last_run(pool_folder).stages
    by_key = {stage.key: stage for stage in stages.values()}
    table = pd.read_parquet(stages["learning_gain"].folder / "learning_gain.parquet")
    assert list(table) == ["id", "task", "loss_base", "loss_tuned", "n_tokens"]

    def source(stage: StageRecord, field: str) -> StageRecord:
        return by_key[stage.manifest["settings"][field]["key"]]

    untuned, *halves = (source(stages["learning_gain"], name) for name in ("untuned", "first", "second"))
    losses = pd.read_parquet(untuned.folder / "relevance.parquet")
    assert losses["id"].tolist() == table["id"].tolist()
    assert losses["loss_with_question"].tolist() == table["loss_base"].tolist()
    assert losses["n_tokens"].tolist() == table["n_tokens"].tolist()
    scored = []
    for half in halves:
        losses = pd.read_parquet(half.folder / "relevance.parquet").set_index("id")["loss_with_question"]
        held_out = table.set_index("id").loc[losses.index]
        assert losses.tolist() == held_out["loss_tuned"].tolist()
        assert Counter(held_out["task"]) == {"vqa": 4, "ocr": 2}
        tuned_on = source(source(half, "model"), "instructions")
        seen = {record.id for record in read_records(tuned_on.folder / "train.json")}
        scored += losses.index.tolist()
        assert seen == set(table["id"]) - set(losses.index)
    assert sorted(scored) == sorted(table["id"])

    # The reference set is bought once, and counts in the budget of whoever reads gains alone.
    ledgers = [stage.folder / "ledger.parquet" for stage in stages.values() if stage.name == "instructions"]
    assert [set(pd.read_parquet(ledger)["id"]) for ledger in ledgers] == [set(table["id"])]
    refused = in_process.refuses("run", *on_folder(pool_folder), *RUN, "reference.share=0.2", "budget=11")
    assert "fewer than the 12 of the reference set" in refused


def test_doctor_counts_half_of_the_reference_set(in_process: Program, pool_folder: Path) -> None:
    result = in_process("doctor", *on_folder(pool_folder), *RUN, *SHARE, "--json", "-")
    images = {stage["stage"]: stage["images"] for stage in json.loads(result.stdout)["stages"]}
    assert images["relevance (reference, base)"] == images["learning_gain"] == 12
    for half in ("half 1", "half 2"):
        assert [images[f"{name} ({half})"] for name in ("reference_half", "model", "relevance")] == [6, 6, 6]


def halves(store: Store, pool: PoolStage, share: float, seed: int = 0) -> list[list[str]]:
    reference = ReferenceStage(pool=pool, share=share, seed=0)
    bought = InstructionsStage(pool=pool, chosen=reference, provider=Annotations(), purpose="reference")
    return [
        [
            record.id
            for record in store.load(
                ReferenceHalfStage(pool=pool, purpose="half", instructions=bought, half=half, seed=seed)
            )
        ]
        for half in (1, 2)
    ]


def test_a_task_of_one_reference_sample_is_in_one_half(store: Store, pool: PoolStage) -> None:
    # Two of vqa and one of ocr.
    one, other = halves(store, pool, 0.05)
    tasks = store.load(pool).set_index("id")["task"]
    assert sorted(Counter(tasks[half].tolist()) for half in (one, other)) == [
        {"vqa": 1},
        {"ocr": 1, "vqa": 1},
    ]


def test_halves_do_not_depend_on_the_order_of_rows(store: Store, pool: PoolStage, pool_folder: Path) -> None:
    before = halves(store, pool, 0.5)
    assert [len(half) for half in before] == [15, 15]
    assert halves(store, pool, 0.5, seed=1) != before
    records = json.loads((pool_folder / "pool.json").read_text())
    (pool_folder / "pool.json").write_text(json.dumps(records[::-1]))
    assert halves(store, PoolStage(source=pool.source, workers=0), 0.5) == before


def test_a_single_sample_has_no_halves(store: Store, pool: PoolStage, pool_folder: Path) -> None:
    records = json.loads((pool_folder / "pool.json").read_text())[1:3]
    (pool_folder / "pool.json").write_text(json.dumps(records))
    with pytest.raises(PreselError, match=r"a single sample \('000.'\).*; raise reference.share"):
        halves(store, PoolStage(source=pool.source, workers=0), 0.05)
