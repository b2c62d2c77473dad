"""Stage `features`: one vector for every image of the pool."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from presel.distributed.stage import ShardedStage
from presel.models.encoder import Encoder
from presel.selection.feature_rows import Features
from presel.stages.pool import PoolStage
from presel.storage.files import atomic, checked, map_array, write_table
from presel.storage.shards import ArrayShards, chunks
from presel.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class FeaturesStage(ShardedStage[Features]):
    """Features of every image by an encoder, `features.npy` and `ids.parquet`.

    Attributes:
        pool: The images.
        encoder: The model.
    """

    name: ClassVar[str] = "features"
    version: ClassVar[int] = 2

    pool: PoolStage
    encoder: Encoder

    def check(self, store: Store) -> None:
        """Checks the model."""
        self.encoder.check()

    def shards(self, store: Store, folder: Path) -> ArrayShards[Path]:
        """The distinct images; copies are encoded once."""
        rows = self._rows(store)
        return ArrayShards(
            folder=folder / "shards",
            items=self.pool.image_paths(store, store.load(self.pool)["image"].groupby(rows).first()),
            label="encoding images",
            to_batches=lambda shard: list(chunks(shard, self.encoder.batch_size)),
            compute_batches=lambda batches: self.encoder.encode(
                batches, self.runtime.workers, self.runtime.hardware.accelerator
            ),
        )

    def join(self, store: Store, folder: Path, shards: ArrayShards[Path]) -> dict[str, Any]:
        """Joins the shards into one file."""
        ids = store.load(self.pool)["id"]
        dimensions = write_features(folder, ids, shards.files, self._rows(store))
        return {"images": len(ids), "different_images": len(shards.items), "dimensions": dimensions}

    def _rows(self, store: Store) -> NDArray[np.intp]:
        """Number of the distinct image that each record shows, (n,)."""
        rows: NDArray[np.intp] = pd.factorize(self.pool.contents(store))[0]
        return rows

    def load(self, folder: Path) -> Features:
        """The features, memory-mapped."""
        return load_features(folder)


def write_features(folder: Path, ids: pd.Series, files: list[Path], rows: NDArray[np.intp]) -> int:
    """Writes `features.npy` and `ids.parquet`.

    Args:
        folder: The folder.
        ids: Ids of the features, (n,).
        files: Shards of the features.
        rows: Row of each feature in the concatenated shards, (n,).

    Returns:
        The number of columns.
    """
    write_table(folder / "ids.parquet", ids.to_frame("id"))
    return _join(files, rows, folder / "features.npy")


def load_features(folder: Path) -> Features:
    """What `write_features` wrote, memory-mapped."""
    return Features(pd.read_parquet(folder / "ids.parquet")["id"], map_array(folder / "features.npy"))


def _join(files: list[Path], rows: NDArray[np.intp], target: Path) -> int:
    """Writes row `rows[i]` of the concatenated shards as row i of `target`; returns the number of columns."""
    shards = [map_array(checked(file)) for file in files]
    columns = int(shards[0].shape[1])
    start = 0
    with atomic(target) as temporary:
        joined = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=(len(rows), columns))
        for shard in shards:
            wanted = np.flatnonzero((rows >= start) & (rows < start + len(shard)))
            joined[wanted] = shard[rows[wanted] - start]
            start += len(shard)
        joined.flush()
    return columns
