"""Stages `features` and `image_tokens`: one vector for every image of the pool."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from presel.distributed.stage import ShardedStage
from presel.models.encoder import ImageEncoder
from presel.models.image_tokens import ImageTokenEncoder
from presel.models.lvlm import Lvlm
from presel.models.precomputed import Precomputed
from presel.selection.feature_rows import Features
from presel.stages.pool import PoolStage
from presel.storage.files import atomic, checked, map_array, map_new_array, write_table
from presel.storage.shards import ArrayShards, chunks
from presel.storage.stage import Stage
from presel.storage.store import Store


class VectorsStage(ShardedStage[Features]):
    """A stage whose result is one feature vector for each id: `features.npy` and `ids.parquet`."""

    def write(
        self,
        folder: Path,
        ids: pd.Series,
        files: list[Path],
        rows: NDArray[np.intp],
        owners: NDArray[np.intp] | None = None,
    ) -> int:
        """Joins the shards into the stage's result.

        Args:
            folder: The stage's folder.
            ids: Ids, (n,).
            files: Shards of the vectors.
            rows: Row of each vector in the concatenated shards, (m,).
            owners: Place of each vector's id, (m,), ascending; an id with several gets their mean. None if
                each has one, in the order of the ids.

        Returns:
            The number of dimensions.

        Raises:
            PreselError: If a shard is damaged.
        """
        return write_features(folder, ids, (map_array(checked(file)) for file in files), rows, owners)

    def load(self, folder: Path) -> Features:
        """The vectors, memory-mapped."""
        return read_features(folder)


def write_features(
    folder: Path,
    ids: pd.Series,
    blocks: Iterable[NDArray[Any]],
    rows: NDArray[np.intp],
    owners: NDArray[np.intp] | None = None,
) -> int:
    """Writes `features.npy` and `ids.parquet` from vectors that come block by block, in one pass.

    Args:
        folder: The stage's folder.
        ids: Ids, (n,).
        blocks: The vectors, (block, d) each; at least one block.
        rows: Row of each vector in the concatenated blocks, (m,).
        owners: As in `VectorsStage.write`.

    Returns:
        The number of dimensions.
    """
    remaining = iter(blocks)
    first = next(remaining)
    dimensions = int(first.shape[1])
    owners = np.arange(len(ids)) if owners is None else owners
    counts = np.bincount(owners, minlength=len(ids))  # (n,)
    several = np.flatnonzero(counts > 1)
    sums = np.zeros((len(several), dimensions), np.float32)
    by_row = np.argsort(rows, kind="stable")  # (m,)
    in_order = rows[by_row]
    start = 0
    with atomic(folder / "features.npy") as file:
        joined = map_new_array(file, first.dtype, (len(ids), dimensions))
        for block in chain([first], remaining):
            low, high = np.searchsorted(in_order, [start, start + len(block)])
            wanted = np.sort(by_row[low:high])
            single = counts[owners[wanted]] == 1
            joined[owners[wanted[single]]] = block[rows[wanted[single]] - start]
            places = np.searchsorted(several, owners[wanted[~single]])
            np.add.at(sums, places, block[rows[wanted[~single]] - start])
            start += len(block)
        joined[several] = sums / counts[several, None]
        joined.flush()
    write_table(folder / "ids.parquet", ids.to_frame("id"))
    return dimensions


def read_features(folder: Path) -> Features:
    """The result of a `VectorsStage`, memory-mapped."""
    return Features(pd.read_parquet(folder / "ids.parquet")["id"], map_array(folder / "features.npy"))


@dataclass(frozen=True, kw_only=True)
class ImageVectorsStage(VectorsStage):
    """A stage that encodes the images of a pool, copies once: `features.npy` and `ids.parquet`.

    The vector of a record with several images is the mean of theirs.

    Attributes:
        pool: The images.
    """

    pool: PoolStage

    @abstractmethod
    def image_encoder(self) -> ImageEncoder:
        """What encodes them."""

    def check(self, store: Store) -> None:
        """Checks devices and model."""
        super().check(store)
        self.image_encoder().check()

    def shards(self, store: Store, folder: Path) -> ArrayShards[Path]:
        """The distinct images; copies are encoded once."""
        images, encoder = self.pool.all_images(store), self.image_encoder()
        return ArrayShards(
            folder=folder / "shards",
            items=self.pool.image_paths(store, images["image"].groupby(_distinct(images)).first()),
            label="encoding images",
            to_batches=lambda shard: list(chunks(shard, encoder.batch_size)),
            compute_batches=lambda batches: encoder.encode(
                batches, self.runtime.workers, self.runtime.hardware.accelerator
            ),
        )

    def join(self, store: Store, folder: Path, shards: ArrayShards[Path]) -> dict[str, Any]:
        """Joins the shards into one file."""
        ids, images = store.load(self.pool)["id"], self.pool.all_images(store)
        owners = images["record"].to_numpy()
        dimensions = self.write(folder, ids, shards.files, _distinct(images), owners)
        return {"images": len(ids), "different_images": len(shards.items), "dimensions": dimensions}


def _distinct(images: pd.DataFrame) -> NDArray[np.intp]:
    """Number of the distinct image that each image is, (m,)."""
    numbers: NDArray[np.intp] = pd.factorize(images["content"])[0]
    return numbers


@dataclass(frozen=True, kw_only=True)
class FeaturesStage(ImageVectorsStage):
    """Features of every image by a vision model.

    Attributes:
        encoder: The model.
    """

    name: ClassVar[str] = "features"
    version: ClassVar[int] = 2

    encoder: ImageEncoder

    def image_encoder(self) -> ImageEncoder:
        """The model."""
        return self.encoder


@dataclass(frozen=True, kw_only=True)
class PrecomputedFeaturesStage(Stage[Features]):
    """Features of every image from a user's file, as `FeaturesStage` leaves them; no image is opened.

    The vector of a record with several images is the mean of theirs.

    Attributes:
        pool: The images.
        encoder: The file.
    """

    # The same, since programs look for the features of a finished run there.
    name: ClassVar[str] = FeaturesStage.name

    pool: PoolStage
    encoder: Precomputed

    def check(self, store: Store) -> None:
        """Checks all of the file but the vectors."""
        self.encoder.check()

    def check_data(self, store: Store) -> None:
        """Checks that every image has a vector that can be used."""
        if not store.has(self):
            self.encoder.check_images(self.pool.all_images(store)["image"])

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Brings the vectors into the order of the pool."""
        ids, images = store.load(self.pool)["id"], self.pool.all_images(store)
        rows, owners = self.encoder.rows(images["image"]), images["record"].to_numpy()
        dimensions = write_features(folder, ids, self.encoder.blocks(), rows, owners)
        return {"images": len(ids), "dimensions": dimensions}

    def load(self, folder: Path) -> Features:
        """The vectors, memory-mapped."""
        return read_features(folder)


# What gives a pool's images the features that they are clustered by.
PoolFeaturesStage: TypeAlias = FeaturesStage | PrecomputedFeaturesStage


@dataclass(frozen=True, kw_only=True)
class ImageTokensStage(ImageVectorsStage):
    """Features of every image by `ImageTokenEncoder`.

    Attributes:
        lvlm: The model, untuned.
        layer: Layers of the language model that the image's tokens pass.
    """

    name: ClassVar[str] = "image_tokens"

    lvlm: Lvlm
    layer: int

    def image_encoder(self) -> ImageEncoder:
        """The language model's first layers."""
        return ImageTokenEncoder(self.lvlm, self.layer)
