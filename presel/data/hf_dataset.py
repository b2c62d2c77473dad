"""Pools that are a Hugging Face dataset on disk."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from presel.component import component
from presel.data.checks import check_file, check_name, shown
from presel.data.images import fingerprint
from presel.data.packed_images import PackedImage, PackedImages
from presel.errors import PreselError
from presel.storage.stage import fields_identity

if TYPE_CHECKING:
    from datasets import Dataset

# Rows of a part; fixed, because the parts of an interrupted run must stay valid.
_ROWS = 1000

# File name suffixes by the first bytes of a file.
_SUFFIXES = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"RIFF": ".webp",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


@component
class HfDataset(PackedImages):
    """A dataset that `save_to_disk` wrote, with a column of type Image.

    Attributes:
        path: Its folder.
        split: The split, if the dataset has several.
        image_column: The column of the images.
        task_column: The column of the tasks (text, whole numbers or ClassLabel); None if there is none.
        id_column: The column of the images' ids; None to number them.
    """

    path: Path
    split: str | None = None
    image_column: str = "image"
    task_column: str | None = "task"
    id_column: str | None = None

    @cached_property
    def content(self) -> dict[str, Any]:
        """The key of the unpacked dataset."""
        return {"path": self.unpacked.key}

    def open(self) -> "SavedDataset":
        """The dataset's files."""
        return SavedDataset(self.path, self.split, self.image_column, self.task_column, self.id_column)


@dataclass(frozen=True)
class SavedDataset:
    """The archive of an `HfDataset`, which documents the fields."""

    path: Path
    split: str | None
    image: str
    task: str | None
    id: str | None

    def identity(self) -> dict[str, Any]:
        """The fields, with names, sizes and dates of the files in place of their folder."""
        if not self.path.is_dir():
            raise PreselError(f"{self.path}: there is no such folder; give one that save_to_disk wrote")
        # Without what `datasets.map` leaves beside the data.
        files = [file for file in sorted(self.path.rglob("*")) if not file.name.startswith("cache-")]
        for file in files:
            # Those that `datasets` opens.
            if file.suffix in (".json", ".arrow"):
                check_file(file)
        named = ((file.relative_to(self.path).as_posix(), file) for file in files if file.is_file())
        content = fingerprint(named)
        return fields_identity(self) | {"path": content}

    def parts(self) -> list[Iterator[PackedImage]]:
        """One part per thousand rows."""
        try:
            import datasets
        except ImportError:
            raise PreselError(
                "pool=hf_dataset needs the package datasets; pip install '.[sources]' in the clone"
            ) from None
        dataset = self._dataset(datasets)
        names = sorted({name for name in (self.image, self.task, self.id) if name is not None})
        for name in names:
            if name not in dataset.column_names:
                raise self._error(
                    f"it has no column '{name}' among {', '.join(dataset.column_names)}; name the columns by "
                    "pool.image_column, pool.task_column and pool.id_column, the last two null for none"
                )
        if not isinstance(dataset.features[self.image], datasets.Image):
            raise self._error(f"its column '{self.image}' is not of type Image; set pool.image_column")
        # Not decoded, so that the files are unpacked unchanged.
        files = datasets.Image(decode=False)
        columns = dataset.with_format(None).select_columns(names)
        try:
            # Arrow does not validate what it reads: a damaged file could crash the process.
            columns.data.validate(full=True)
        except ValueError as error:
            raise self._error(f"it is damaged ({shown(str(error))}); save the dataset again") from None
        rows = columns.cast_column(self.image, files)
        return [self._images(rows, start) for start in range(0, len(rows), _ROWS)]

    def _dataset(self, datasets: ModuleType) -> "Dataset":
        try:
            found = datasets.load_from_disk(str(self.path))
        # Arrow's errors, and those caused by malformed JSON files.
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise self._error(
                f"no dataset can be read from it ({shown(str(error))}); give a folder that save_to_disk wrote"
            ) from error
        if not isinstance(found, datasets.DatasetDict):
            if self.split is not None:
                raise self._error("it has no splits; leave pool.split out")
            return found
        if self.split not in found:
            raise self._error(f"it has splits; set pool.split to one of {', '.join(found)}")
        return found[self.split]

    def _images(self, dataset: "Dataset", start: int) -> Iterator[PackedImage]:
        width = len(str(len(dataset) - 1))
        for number in range(start, min(start + _ROWS, len(dataset))):
            try:
                fields = dataset[number]
                name = f"{number:0{width}}" if self.id is None else fields[self.id]
                yield PackedImage(
                    check_name(name, f"'{self.id}'", "name the image"),
                    None if self.task is None else self._task(dataset, fields[self.task]),
                    *self._file(fields[self.image]),
                )
            except OverflowError:
                raise self._error(f"row {number}: it contains an invalid date; correct it") from None
            except PreselError as error:
                raise self._error(f"row {number}: {error}") from None

    def _task(self, dataset: "Dataset", value: object) -> str:
        labels = getattr(dataset.features[self.task], "names", None)
        if labels is not None and isinstance(value, int):
            # -1 marks a row without a label.
            value = labels[value] if value >= 0 else None
        return check_name(value, f"'{self.task}'", "name the image's task")

    def _file(self, image: dict[str, Any] | None) -> tuple[str, bytes]:
        if image is None or image["bytes"] is None:
            raise PreselError(
                f"'{self.image}' contains no image file; save the dataset by save_to_disk, which embeds files"
            )
        data: bytes = image["bytes"]
        suffixes = [suffix for beginning, suffix in _SUFFIXES.items() if data.startswith(beginning)]
        return "".join(suffixes), data

    def _error(self, message: str) -> PreselError:
        return PreselError(f"{self.path}: {message}")
