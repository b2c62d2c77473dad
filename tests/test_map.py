"""The stage `map`."""

from pathlib import Path

import numpy as np
import pytest

from presel.distributed.runtime import Runtime
from presel.models.encoder import Encoder
from presel.models.hardware import Hardware
from presel.stages.features import FeaturesStage
from presel.stages.map import MapStage
from presel.stages.pool import PoolStage
from presel.storage.store import Store


@pytest.fixture
def stage(pool: PoolStage) -> MapStage:
    encoder, runtime = Encoder(path="builtin:digit_dinov2"), Runtime(hardware=Hardware(accelerator="cpu"))
    return MapStage(features=FeaturesStage(pool=pool, encoder=encoder, runtime=runtime))


def test_every_image_has_a_place(stage: MapStage, store: Store, pool_folder: Path) -> None:
    table = store.load(stage)
    assert table["id"].tolist() == [f"{number:04}" for number in range(60)]
    assert table[["x", "y"]].to_numpy().min() >= 0
    assert table[["x", "y"]].to_numpy().max() <= 1
    assert len(np.unique(table[["x", "y"]], axis=0)) == 60
