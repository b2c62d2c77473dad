"""Stage `features`: one vector for every image of the pool."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from presel.files import atomic, map_array, write_array, write_table
from presel.models.encoder import Encoder
from presel.selection import FeatureRows
from presel.shards import chunks, compute_shards
from presel.stages.pool import PoolStage
from presel.store import Stage, Store


class Features(NamedTuple):
    """Image features on disk: `ids[i]` names row `i` of `array`, (n, d) float16, not normalised."""

    ids: pd.Series
    array: NDArray[np.float16]

    def normalised_by_id(self) -> tuple[NDArray[np.str_], FeatureRows]:
        """Ids in ascending order, (n,), and the features in that order, L2-normalised as they are read."""
        names = self.ids.to_numpy(dtype=str)
        order = np.argsort(names)
        return names[order], FeatureRows(self.array, index=order, normalise=True, ids=names.tolist())


@dataclass(frozen=True)
class FeaturesStage(Stage[Features]):
    """Features of every image by an encoder, `features.npy` and `ids.parquet`.

    Attributes:
        pool: Whose images.
        encoder: By what model.
        workers: Processes that decode images.
        accelerator: Where.
    """

    name: ClassVar[str] = "features"
    version: ClassVar[int] = 2

    pool: PoolStage
    encoder: Encoder
    workers: int = field(compare=False)
    accelerator: str = field(compare=False)

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Encodes the different images in shards, then joins the shards into one file."""
        pool = store.load(self.pool)
        # Copies are encoded once: `rows` says which of the different images each record shows.
        rows, contents = pd.factorize(self.pool.contents(store))
        first = pool["image"].groupby(rows).first()
        files = compute_shards(
            lambda number: folder / "shards" / f"part-{number:05}.npy",
            self.pool.image_paths(store, first),
            "encoding images",
            lambda shard: list(chunks(shard, self.encoder.batch_size)),
            lambda batches: self.encoder.encode(batches, self.workers, self.accelerator),
            lambda file, rows: write_array(file, np.concatenate(rows)),
        )
        dimensions = write_features(folder, pool["id"], files, rows)
        return {"images": len(pool), "different_images": len(contents), "dimensions": dimensions}

    def load(self, folder: Path) -> Features:
        """The features, memory-mapped."""
        return load_features(folder)


def write_features(folder: Path, ids: pd.Series, files: list[Path], rows: NDArray[np.intp]) -> int:
    """Writes `features.npy` and `ids.parquet`.

    Args:
        folder: Where.
        ids: Names of the features, (n,).
        files: Shards of the features.
        rows: Where each feature lies in the shards, counted over all of them, (n,).

    Returns:
        The number of columns.
    """
    write_table(folder / "ids.parquet", ids.to_frame("id"))
    return _join(files, rows, folder / "features.npy")


def load_features(folder: Path) -> Features:
    """What `write_features` wrote, memory-mapped."""
    return Features(pd.read_parquet(folder / "ids.parquet")["id"], map_array(folder / "features.npy"))


def _join(files: list[Path], rows: NDArray[np.intp], target: Path) -> int:
    """Puts row `rows[i]` of the shards together into row i of one file; returns the number of columns."""
    shards = [map_array(file) for file in files]
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
