"""Pools that are listed in a table (CSV, TSV or parquet)."""

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

from presel.component import component
from presel.data.checks import check_file, check_name, check_path, check_text, shown
from presel.data.errors import OnError, RecordError, refuse
from presel.data.images import image_fingerprint
from presel.data.listing import Item, Listing
from presel.data.sources import ImageSource
from presel.errors import PreselError
from presel.storage.files import sha256
from presel.storage.store import Store

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


class Columns(NamedTuple):
    """The names of a manifest's columns, see `Manifest`."""

    image: str
    task: str | None
    id: str | None


@component
class Manifest(ImageSource):
    """A table with a row per image.

    Attributes:
        manifest: The file; its name ends in `.csv`, `.tsv` or `.parquet`.
        images: Folder that the image paths are relative to.
        image_column: The column of the image paths.
        task_column: The column of the tasks; None if there is none.
        id_column: The column of the images' ids; None to use their paths.
    """

    manifest: Path
    images: Path
    image_column: str = "image"
    task_column: str | None = "task"
    id_column: str | None = None

    def files(self, store: Store) -> "ManifestFiles":
        """The folder and the table."""
        return self._files

    @property
    def _files(self) -> "ManifestFiles":
        columns = Columns(self.image_column, self.task_column, self.id_column)
        return ManifestFiles(self.images.absolute(), self.manifest.absolute(), columns, self.task)

    @cached_property
    def content(self) -> dict[str, Any]:
        """The table's content, and the images' names, sizes and dates."""
        images = [item.image for item in self._files.listing().items]
        return {"manifest": sha256(self.manifest), "images": image_fingerprint(self.images, images)}


class ManifestFiles(NamedTuple):
    """A manifest and the folder of its images.

    Attributes:
        images: The folder.
        manifest: The table: CSV or TSV with a header, in UTF-8, or parquet.
        columns: Its columns; further ones are not read.
        task: The task of all images if there is no column for it.
    """

    images: Path
    manifest: Path
    columns: Columns
    task: str | None

    def listing(self, on_error: OnError = refuse) -> Listing:
        """Reads the images, in the order of the rows, and checks every row.

        Args:
            on_error: Receives the error of each unusable row; if it returns, the others are read. Rows are
                counted from 1, without the header.

        Raises:
            PreselError: If the file cannot be read, lacks a column or has no row.
        """
        items: list[Item] = []
        rows: dict[str, int] = {}
        check_file(self.manifest)
        number = 0
        try:
            for number, fields in enumerate(_rows(self.manifest, self.columns), start=1):
                try:
                    item = _item(fields, self.columns, self.task)
                    first = rows.setdefault(item.id, number)
                    if first != number:
                        raise RecordError(
                            f"'{self.columns.id or self.columns.image}' is already that of row {first} "
                            f"({shown(item.id)}); give every image one row and a name of its own",
                            "duplicate id",
                        )
                    items.append(item)
                except RecordError as error:
                    place, image = f"{self.manifest}: row {number}", fields[self.columns.image]
                    on_error(RecordError(error.reason, error.kind, place, image))
        except RecordError:
            raise
        except PreselError as error:
            raise PreselError(f"{self.manifest}: {error}") from None
        if not number:
            raise PreselError(f"{self.manifest}: the table has no row; give one with at least one image")
        return Listing(items)


def _item(fields: Mapping[str, object], columns: Columns, task: str | None) -> Item:
    image = check_text(fields[columns.image], f"'{columns.image}'", "name an image file", "no image")
    check_path(image, f"'{columns.image}'")
    if columns.task is not None:
        task = check_name(fields[columns.task], f"'{columns.task}'", "name the image's task", "no task")
    if columns.id is None:
        return Item(image, image, task)
    return Item(check_name(fields[columns.id], f"'{columns.id}'", "name the image", "no id"), image, task)


def _rows(path: Path, columns: Columns) -> Iterator[Mapping[str, object]]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(path, columns)
    if suffix in _DELIMITERS:
        return _text_rows(path, _DELIMITERS[suffix], columns)
    raise PreselError("the format is unknown; let the name end in .csv, .tsv or .parquet")


def _text_rows(path: Path, delimiter: str, columns: Columns) -> Iterator[Mapping[str, object]]:
    # Columns that are not read may contain texts or encoded images of any length.
    csv.field_size_limit(sys.maxsize)
    number = 0
    try:
        # utf-8-sig: spreadsheets write a byte order mark, which is not part of the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            _check_delimiter(stream.readline(), delimiter, columns.image)
            stream.seek(0)
            lines = csv.reader(stream, delimiter=delimiter, strict=True)
            header = next(lines, [])
            _check_columns(header, columns)
            for number, cells in enumerate((line for line in lines if line), start=1):
                if len(cells) != len(header):
                    raise PreselError(
                        f"row {number}: it has {len(cells)} cells where the header has {len(header)}; quote "
                        "cells that contain the delimiter"
                    )
                yield dict(zip(header, cells, strict=True))
    except UnicodeDecodeError:
        raise PreselError("the file is not UTF-8; convert it") from None
    except csv.Error as error:
        raise PreselError(f"row {number + 1} is malformed ({error}); export the file again") from None


def _check_delimiter(header: str, delimiter: str, image: str) -> None:
    if "\0" in header:
        raise PreselError("the file is not UTF-8 but UTF-16, or not text at all; convert it")
    # Names of columns may have any character in them.
    found = image in next(csv.reader([header], delimiter=delimiter), [])
    most = max(map(header.count, _NAMES))
    if header.lower().startswith("sep=") or (not found and header.count(delimiter) < most):
        raise PreselError(
            f"its first line is {shown(header.strip())}; begin with the columns' names, separated by "
            f"{_NAMES[delimiter]} as the file's name says (.csv commas, .tsv tabs)"
        )


def _parquet_rows(path: Path, columns: Columns) -> Iterator[Mapping[str, object]]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_columns(file.schema_arrow.names, columns)
            for batch in file.iter_batches(columns=sorted({name for name in columns if name is not None})):
                yield from batch.to_pylist()
    except UnicodeDecodeError:
        raise PreselError("a text in it is not UTF-8; convert it before the export") from None
    # Some values of Arrow, such as dates in the year 100,000, cannot be converted to Python.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise PreselError(
            f"no parquet can be read from it ({shown(str(error))}); export the file again"
        ) from None


def _check_columns(header: Sequence[str], columns: Columns) -> None:
    for role, name in columns._asdict().items():
        if name is not None and header.count(name) != 1:
            remedy = "" if role == "image" else f", or null if there is none (pool.{role}_column=null)"
            raise PreselError(
                f"it has {'no' if name not in header else 'more than one'} column '{name}' among "
                f"{', '.join(map(shown, header)) or 'none'}; name the column by pool.{role}_column{remedy}"
            )
