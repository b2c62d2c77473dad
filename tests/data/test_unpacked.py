"""Unpacking an archive goes on where it stopped."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from presel.data.packed_images import PackedImage, UnpackedStage
from presel.storage.store import Store


@dataclass(frozen=True)
class Interrupted:
    """An archive of three parts; the second cannot be read until a file is there."""

    ready: Path
    read: list[int]

    def identity(self) -> dict[str, Any]:
        return {}

    def parts(self) -> list[Iterator[PackedImage]]:
        return [self._part(number) for number in range(3)]

    def _part(self, number: int) -> Iterator[PackedImage]:
        self.read.append(number)
        yield PackedImage(f"first of {number}", None, ".png", b"1")
        if number == 1 and not self.ready.exists():
            raise KeyboardInterrupt
        yield PackedImage(f"second of {number}", "a", ".png", b"2")


def test_unpacking_goes_on_where_it_stopped(tmp_path: Path, store: Store) -> None:
    archive = Interrupted(tmp_path / "ready", [])
    with pytest.raises(KeyboardInterrupt):
        store.ensure(UnpackedStage(archive=archive))
    archive.ready.touch()
    folder = store.ensure(UnpackedStage(archive=archive))
    assert archive.read == [0, 1, 1, 2]
    assert len(list((folder / "images").rglob("*.png"))) == 6
