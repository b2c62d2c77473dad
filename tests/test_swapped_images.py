"""Swapped images: each reference sample gets the image of another one of its task."""

import json
from dataclasses import replace
from pathlib import Path

from presel.data.llava import Record
from presel.instructions.annotations import Annotations
from presel.instructions.ledger import requested_ids
from presel.stages.instructions import InstructionsStage
from presel.stages.pool import PoolStage
from presel.stages.reference import ReferenceStage
from presel.stages.swapped_images import SwappedImagesStage
from presel.storage.store import Store


def swapped(store: Store, pool: PoolStage, share: float, seed: int = 0) -> tuple[list[Record], list[Record]]:
    """The reference samples, and those with swapped images."""
    reference = ReferenceStage(pool=pool, share=share, seed=0)
    bought = InstructionsStage(pool=pool, chosen=reference, provider=Annotations(), purpose="reference")
    stage = SwappedImagesStage(pool=pool, purpose="swapped", instructions=bought, seed=seed)
    assert requested_ids(store, stage) == {record.id for record in store.load(bought)}
    return store.load(bought), store.load(stage)


def test_every_image_is_used_once_more_in_its_own_task(
    store: Store, pool: PoolStage, pool_folder: Path
) -> None:
    before, after = swapped(store, pool, 0.2)
    assert len(before) == 12
    assert [replace(new, images=old.images) for old, new in zip(before, after, strict=True)] == before
    assert all(old.images != new.images for old, new in zip(before, after, strict=True))
    for task in ("vqa", "ocr"):
        old, new = ({one.images for one in records if one.task == task} for records in (before, after))
        assert old == new
    assert swapped(store, pool, 0.2, seed=1)[1] != after
    records = json.loads((pool_folder / "pool.json").read_text())
    (pool_folder / "pool.json").write_text(json.dumps(records[::-1]))
    assert swapped(store, PoolStage(source=pool.source, workers=0), 0.2)[1] == after


def test_the_only_sample_of_a_task_keeps_its_image(store: Store, pool: PoolStage) -> None:
    before, after = swapped(store, pool, 0.05)
    assert [old.task for old, new in zip(before, after, strict=True) if old == new] == ["ocr"]
