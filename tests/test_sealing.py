"""Instructions are sealed: a strategy sees none that was not paid for, and the ledger counts every one."""

import gc
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from presel.component import component
from presel.data.listing import PoolFiles
from presel.distributed.runtime import Runtime
from presel.errors import PreselError
from presel.instructions.annotations import Annotations
from presel.instructions.ledger import LEDGER, UNANSWERED, request, requested_ids
from presel.instructions.provider import NOT_REQUESTED, InstructionRequest, ProviderResult
from presel.models.encoder import Encoder
from presel.models.hardware import Hardware
from presel.stages.features import FeaturesStage
from presel.stages.instructions import InstructionsStage
from presel.stages.pool import Pool, PoolStage
from presel.stages.reference import ReferenceStage
from presel.stages.selection import SelectionStage
from presel.storage.stage import Stage
from presel.storage.store import Store
from presel.strategies.base import SelectionContext, Strategy
from presel.strategies.full import Full
from presel.strategies.random import Random

SECRET = "There are"
ENCODER = Encoder(path="builtin:digit_dinov2")
CPU = Runtime(hardware=Hardware(accelerator="cpu"))


@component
class Greedy(Strategy):
    """Tries to read what it never declared."""

    wanted: str

    def select(self, context: SelectionContext) -> pd.DataFrame:
        return pd.DataFrame({"id": getattr(context, self.wanted)["id"]})


@component
class Searching(Strategy):
    """Searches every object within its reach for the text of an instruction, or the way to one."""

    needs: ClassVar[tuple[str, ...]] = ("features", "reference")

    def select(self, context: SelectionContext) -> pd.DataFrame:
        assert context.features.array.shape == (60, 128)
        found = [text for text in _reachable_texts(context) if SECRET in text or "/store/" in text]
        assert not found
        return context.reference


def select(strategy: Strategy, pool: PoolStage, budget: float = 0.5) -> SelectionStage:
    return SelectionStage(strategy=strategy, pool=pool, budget=budget, seed=0, needed={})


def test_the_pool_holds_no_text(store: Store, pool: PoolStage) -> None:
    assert list(store.load(pool)) == ["id", "image", "task"]
    files = [file for file in store.folder(pool).rglob("*") if file.is_file()]
    assert files
    assert not any(SECRET.encode() in file.read_bytes() for file in files)


@pytest.mark.parametrize("wanted", ["reference", "relevance", "features", "clusters"])
def test_an_undeclared_result_is_refused(store: Store, pool: PoolStage, wanted: str) -> None:
    with pytest.raises(PreselError, match=f"reads '{wanted}' without declaring it"):
        store.ensure(select(Greedy(wanted=wanted), pool))


@pytest.mark.parametrize("wanted", ["instructions", "conversations", "source", "annotations", "store"])
def test_there_is_no_name_to_ask_for_instructions_by(store: Store, pool: PoolStage, wanted: str) -> None:
    with pytest.raises(AttributeError):
        store.ensure(select(Greedy(wanted=wanted), pool))


def test_no_instruction_is_within_a_strategys_reach(store: Store, pool: PoolStage) -> None:
    needed = {
        "features": FeaturesStage(pool=pool, encoder=ENCODER, runtime=CPU),
        "reference": ReferenceStage(pool=pool, share=0.05, seed=0),
    }
    store.ensure(SelectionStage(strategy=Searching(), pool=pool, budget=0.5, seed=0, needed=needed))


def test_the_ledger_names_what_was_revealed_and_nothing_else(store: Store, pool: PoolStage) -> None:
    stage = InstructionsStage(
        pool=pool, chosen=select(Random(), pool), provider=Annotations(), purpose="selection"
    )
    records = store.load(stage)
    ledger = pd.read_parquet(store.folder(stage) / LEDGER)
    assert len(records) == 30
    assert ledger["id"].tolist() == [record.id for record in records]
    assert set(ledger["stage"]) == {"selection"}
    assert requested_ids(store, stage) == {record.id for record in records}


def test_the_full_pool_requests_everything(store: Store, pool: PoolStage) -> None:
    stage = InstructionsStage(
        pool=pool, chosen=select(Full(), pool, budget=1.0), provider=Annotations(), purpose="selection"
    )
    store.ensure(stage)
    assert len(requested_ids(store, stage)) == 60


def wanted(*ids: str) -> list[InstructionRequest]:
    return [InstructionRequest(name, f"{name}.png", "count", "digest") for name in ids]


def test_the_ledger_is_written_before_any_text_is_handed_out(
    tmp_path: Path, pool: PoolStage, store: Store
) -> None:
    with pytest.raises(PreselError, match="no record with id 'nobody'"):
        request(wanted("0001", "nobody"), Annotations(), pool.source.files(store), tmp_path, "selection")
    assert pd.read_parquet(tmp_path / LEDGER)["id"].tolist() == ["0001", "nobody"]


class Generous(Annotations):
    """Gives one instruction more than was asked for."""

    def reveal(self, wanted: Sequence[InstructionRequest], files: PoolFiles) -> ProviderResult:
        more = InstructionRequest("0002", "0002.png", "count", "digest")
        return super().reveal([*wanted, more], files)


def test_a_provider_gives_what_was_asked_for_and_nothing_else(
    tmp_path: Path, pool: PoolStage, store: Store
) -> None:
    with pytest.raises(PreselError, match="Generous gave 2 instructions and 0 reasons for none, not one"):
        request(wanted("0001"), Generous(), pool.source.files(store), tmp_path, "selection")


class Shy(Annotations):
    """Answers nothing about the image '0001'."""

    def reveal(self, wanted: Sequence[InstructionRequest], files: PoolFiles) -> ProviderResult:
        told = super().reveal([image for image in wanted if image.id != "0001"], files)
        return ProviderResult(told.records, {"0001": "refused: a face"})


def test_images_without_an_instruction_are_listed_and_put_up_with_up_to_a_share(
    tmp_path: Path, pool: PoolStage, store: Store
) -> None:
    files = pool.source.files(store)
    records = request(wanted("0001", "0000"), Shy(max_unanswered_share=0.5), files, tmp_path, "selection")
    assert [record.id for record in records] == ["0000"]
    assert pd.read_parquet(tmp_path / UNANSWERED).to_numpy().tolist() == [["0001", "refused: a face"]]
    with pytest.raises(
        PreselError,
        match=r"1 of 2 images .*share=0\.4 allows: refused \(1\); .* '0001': refused: a f",
    ):
        request(wanted("0001", "0000"), Shy(max_unanswered_share=0.4), files, tmp_path, "selection")
    with pytest.raises(
        PreselError, match="1 of 1 images have no instruction, and there is nothing to train on"
    ):
        request(wanted("0001"), Shy(max_unanswered_share=1), files, tmp_path, "selection")


class Offline(Annotations):
    """Gets no answer from its server, and gives up."""

    def reveal(self, wanted: Sequence[InstructionRequest], files: PoolFiles) -> ProviderResult:
        reasons = dict.fromkeys([image.id for image in wanted], f"{NOT_REQUESTED}, after 2 failures")
        return ProviderResult([], reasons | {"0001": "400 bad request", "0002": "503 busy, after 7 requests"})


def test_the_most_frequent_reason_comes_first_and_an_image_never_requested_is_no_example(
    tmp_path: Path, pool: PoolStage, store: Store
) -> None:
    images = wanted("0001", "0002", "0003", "0004", "0005")
    with pytest.raises(
        PreselError, match=r"5 of 5 .*allows: 400 bad .*; for example '0001': 400 bad"
    ) as told:
        request(images, Offline(), pool.source.files(store), tmp_path, "selection")
    assert "allows: 400 bad request (1), 503 busy (1), not requested (3); for example" in str(told.value)


class Garbled(Shy):
    """Quotes half of a surrogate pair."""

    def reveal(self, wanted: Sequence[InstructionRequest], files: PoolFiles) -> ProviderResult:
        return super().reveal(wanted, files)._replace(unanswered={"0001": "not JSON: \ud83d"})


def test_a_reason_that_no_file_can_hold_is_listed_all_the_same(
    tmp_path: Path, pool: PoolStage, store: Store
) -> None:
    files = pool.source.files(store)
    request(wanted("0001", "0000"), Garbled(max_unanswered_share=0.5), files, tmp_path, "selection")
    assert pd.read_parquet(tmp_path / UNANSWERED).to_numpy().tolist() == [["0001", "not JSON: ?"]]


@dataclass(frozen=True, kw_only=True)
class SearchingStage(Stage[pd.DataFrame]):
    """A strategy's own stage, which searches every object within its reach for the text of an instruction."""

    name: ClassVar[str] = "searching"

    pool: Pool
    features: FeaturesStage
    reference: ReferenceStage

    def compute(self, store: Store, folder: Path) -> None:
        results = [store.load(self.pool), store.load(self.features), store.load(self.reference)]
        assert not [text for text in _reachable_texts([self, store, results]) if SECRET in text]

    def load(self, folder: Path) -> pd.DataFrame:
        return pd.DataFrame()


@dataclass(frozen=True, kw_only=True)
class ReadingStage(SearchingStage):
    """Reads instructions, by the only stage that has them."""

    instructions: InstructionsStage

    def compute(self, store: Store, folder: Path) -> None:
        assert all(SECRET in str(record.conversations) for record in store.load(self.instructions))


def test_a_stage_of_ones_own_gets_text_by_the_ledger_alone(store: Store, pool: PoolStage) -> None:
    inputs = {
        "pool": pool,
        "features": FeaturesStage(pool=pool, encoder=ENCODER, runtime=CPU),
        "reference": ReferenceStage(pool=pool, share=0.05, seed=0),
    }
    searching = SearchingStage(**inputs)
    store.ensure(searching)
    assert requested_ids(store, searching) == set()
    bought = InstructionsStage(
        pool=pool, chosen=inputs["reference"], provider=Annotations(), purpose="reference"
    )
    reading = ReadingStage(**inputs, instructions=bought)
    store.ensure(reading)
    assert requested_ids(store, reading) == set(store.load(inputs["reference"])["id"])
    # What it read counts in the budget, which what it only might have read does not.
    for stage, counted in ((searching, None), (reading, inputs["reference"])):
        selection = SelectionStage(strategy=Random(), pool=pool, budget=0.5, seed=0, needed={"own": stage})
        assert selection.reference == counted


@component
class Spendthrift(Strategy):
    """Spends the whole budget beside the reference set."""

    needs: ClassVar[tuple[str, ...]] = ("reference",)

    def select(self, context: SelectionContext) -> pd.DataFrame:
        return context.pool[~context.pool["id"].isin(context.reference["id"])][["id"]].head(context.budget)


def test_the_reference_set_counts_in_the_budget(store: Store, pool: PoolStage) -> None:
    stage = SelectionStage(
        strategy=Spendthrift(),
        pool=pool,
        budget=0.5,
        seed=0,
        needed={"reference": ReferenceStage(pool=pool, share=0.05, seed=0)},
    )
    with pytest.raises(PreselError, match="chose 30 images beside the reference set, 33 in all"):
        store.ensure(stage)


@dataclass(frozen=True, kw_only=True)
class BuyingStage(Stage[pd.DataFrame]):
    """A strategy's own stage, which has instructions bought."""

    name: ClassVar[str] = "buying"

    bought: tuple[InstructionsStage, ...]

    def compute(self, store: Store, folder: Path) -> None: ...

    def load(self, folder: Path) -> pd.DataFrame:
        return pd.DataFrame()


@pytest.mark.parametrize("whole", [False, True])
def test_whatever_was_bought_counts_in_the_budget_but_the_whole_pool(
    whole: bool, store: Store, pool: PoolStage
) -> None:
    sets = [ReferenceStage(pool=pool, share=0.1, seed=seed) for seed in (0, 1)]
    purchases = [
        InstructionsStage(pool=pool, chosen=chosen, provider=Annotations(), purpose="a part")
        for chosen in [*sets, *([pool] if whole else [])]
    ]
    needed = {"reference": sets[0], "own": BuyingStage(bought=tuple(purchases))}
    stage = SelectionStage(strategy=Spendthrift(), pool=pool, budget=0.5, seed=0, needed=needed)
    paid = {name for chosen in sets[: 1 if whole else 2] for name in store.load(chosen)["id"]}
    chosen = Spendthrift().select(
        SelectionContext(
            pool=store.load(pool),
            budget=30,
            rng=np.random.default_rng(0),
            results={"reference": store.load(sets[0])},
        )
    )
    with pytest.raises(PreselError, match=f" {len(paid.union(chosen['id']))} in all, where the budget is 30"):
        store.ensure(stage)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["0001", "0001"], "returned image '0001' twice"),
        (["nobody"], "chose 'nobody', which is not in the pool"),
        ([f"{number:04}" for number in range(60)], "chose 60 images where the budget is 30"),
        ([], "chose 0 images"),
    ],
)
def test_a_choice_that_breaks_the_rules_is_refused(
    store: Store, pool: PoolStage, ids: list[str], message: str
) -> None:
    @component
    class Wrong(Strategy):
        def select(self, context: SelectionContext) -> pd.DataFrame:
            return pd.DataFrame({"id": pd.Series(ids, dtype=str)})

    with pytest.raises(PreselError, match=message):
        store.ensure(select(Wrong(), pool))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"id": ["0001", "0001"], "selected": [True, False]}, "Wrong.select returned image '0001' twice"),
        ({"id": ["0001", "0002"], "selected": [True, None]}, "other values than True and False"),
        ({"id": ["0001", "0002"], "selected": [1, 0]}, "other values than True and False"),
        ({"id": ["0001", "0002"], "selected": ["True", "False"]}, "other values than True and False"),
        ({"id": ["0001", "0002"], "why": ["near", 2]}, "cannot be stored .*column why"),
    ],
)
def test_a_table_that_says_nothing_clear_is_refused(
    store: Store, pool: PoolStage, table: dict[str, list[object]], message: str
) -> None:
    @component
    class Wrong(Strategy):
        def select(self, context: SelectionContext) -> pd.DataFrame:
            return pd.DataFrame(table)

    with pytest.raises(PreselError, match=message):
        store.ensure(select(Wrong(), pool))


def test_an_index_of_ids_and_nullable_booleans_are_taken_as_they_are_meant(
    store: Store, pool: PoolStage
) -> None:
    @component
    class Indexed(Strategy):
        def select(self, context: SelectionContext) -> pd.DataFrame:
            ids = pd.Series(["0001", "0002"], name="id")
            selected = pd.Series([True, False], dtype="boolean")
            return pd.DataFrame({"id": ids, "selected": selected}).set_index("id", drop=False)

    stage = select(Indexed(), pool)
    store.ensure(stage)
    assert list(store.load(stage)["id"]) == ["0001"]


def _reachable_texts(start: Any) -> Iterator[str]:
    """Every string that can be reached from an object, without going through code."""
    seen: set[int] = set()
    queue = [start]
    while queue:
        value = queue.pop()
        if id(value) in seen or isinstance(value, type | types.ModuleType | types.FunctionType):
            continue
        seen.add(id(value))
        if isinstance(value, str):
            yield value
        queue += gc.get_referents(value)
