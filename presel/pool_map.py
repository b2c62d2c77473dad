"""Where the images of a finished run's pool lie on the map."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NoReturn

import pandas as pd

from presel.console import ConsoleReporter
from presel.errors import PreselError
from presel.pipeline import Pipeline
from presel.runs import RunRecord
from presel.selection.feature_rows import Features
from presel.settings.errors import MISTAKES, explain
from presel.settings.schema import build
from presel.stages.features import read_features
from presel.stages.map import MapStage
from presel.storage.stage import Stage
from presel.storage.store import Store


def pool_map(run: RunRecord) -> pd.DataFrame:
    """Every image's place on the map of a run's pool, computed first unless it is in the run's store.

    If the run has not encoded the images, and no other has, they are encoded first, which can take hours.

    Returns:
        Table of id, x, y (from 0 to 1; see `presel.selection.layout`), in the order of the pool.

    Raises:
        PreselError: If the run's results are gone; if images are to be encoded, and the pool is not what the
            run found, or cannot be found from this folder.
    """
    return _store(run).load(_map(run))


def pool_map_if_encoded(run: RunRecord) -> pd.DataFrame | None:
    """The same, or None if the images are not encoded yet."""
    store, stage = _store(run), _map(run)
    return store.load(stage) if store.has(stage.features) else None


def pool_features(run: RunRecord) -> Features:
    """The features that the map is laid out by, computed first as `pool_map` says."""
    features: Features = _store(run).load(_map(run).features)
    return features


def _store(run: RunRecord) -> Store:
    return Store(run.stages["images"].folder.parents[1], ConsoleReporter())


def _map(run: RunRecord) -> MapStage:
    if "features" in run.stages:
        return MapStage(features=_RecordedFeatures(record_key=run.stages["features"].key, run=run.folder))
    return _pipeline(run).map


@dataclass(frozen=True, kw_only=True)
class _RecordedFeatures(Stage[Features]):
    """The features of a run's record, found without its pool and settings, which may have changed since.

    Attributes:
        record_key: Their key.
        run: The run's folder.
    """

    name: ClassVar[str] = "features"

    record_key: str
    run: Path

    @cached_property
    def key(self) -> str:
        """The key in the record."""
        return self.record_key

    def compute(self, store: Store, folder: Path) -> NoReturn:
        """There is nothing to compute them from."""
        raise PreselError(f"{self.run}: its features are gone from {folder}; run the same command again")

    def load(self, folder: Path) -> Features:
        """The vectors, memory-mapped."""
        return read_features(folder)


def _pipeline(run: RunRecord) -> Pipeline:
    """The pipeline of a run, rebuilt from its configuration."""
    try:
        pipeline = build(run.config)
    except MISTAKES as error:
        raise PreselError(f"{run.folder}: {explain(error)}") from error
    if pipeline.images.key != run.stages["images"].key:
        raise PreselError(
            f"{run.folder}: its pool cannot be found as it was; start this in the folder that the run was "
            "started in, or if the pool's files have changed, run the same command again"
        )
    return pipeline
