"""Stage `features`: one vector for every image of the pool."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from presel.console import progress
from presel.files import atomic, write_array, write_table
from presel.models.encoder import Encoder
from presel.shards import SHARD_SIZE, chunks
from presel.stages.pool import PoolStage
from presel.store import Stage, Store


class Features(NamedTuple):
    """Image features on disk: `ids[i]` names row `i` of `array`, (n, d) float16, not normalised."""

    ids: pd.Series
    array: NDArray[np.float16]


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

    pool: PoolStage
    encoder: Encoder
    workers: int = field(compare=False)
    accelerator: str = field(compare=False)

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Encodes the images in shards, then joins the shards into one file."""
        pool = store.load(self.pool)
        shards = list(chunks(self.pool.image_paths(store, pool["image"]), SHARD_SIZE))
        files = [folder / "shards" / f"part-{number:05}.npy" for number in range(len(shards))]
        with progress("encoding images", len(pool)) as advance:
            missing = []
            for shard, file in zip(shards, files, strict=True):
                if file.exists():
                    advance(len(shard))
                else:
                    missing.append((list(chunks(shard, self.encoder.batch_size)), file))
            encoded = self.encoder.encode(
                [batch for batches, _ in missing for batch in batches], self.workers, self.accelerator
            )
            for batches, file in missing:
                rows = []
                for batch in batches:
                    rows.append(next(encoded))
                    advance(len(batch))
                write_array(file, np.concatenate(rows))
        dimensions = _join(files, folder / "features.npy")
        write_table(folder / "ids.parquet", pool[["id"]])
        return {"images": len(pool), "dimensions": dimensions}

    def load(self, folder: Path) -> Features:
        """The features, memory-mapped."""
        array = np.load(folder / "features.npy", mmap_mode="r")
        return Features(pd.read_parquet(folder / "ids.parquet")["id"], array)


def _join(files: list[Path], target: Path) -> int:
    """Puts the shards into one file, one in memory at a time; returns the number of columns."""
    shapes = [np.load(file, mmap_mode="r").shape for file in files]
    columns = int(shapes[0][1])
    with atomic(target) as temporary:
        joined = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.float16, shape=(sum(rows for rows, _ in shapes), columns)
        )
        start = 0
        for file, (rows, _) in zip(files, shapes, strict=True):
            joined[start : start + rows] = np.load(file)
            start += rows
        joined.flush()
    return columns
