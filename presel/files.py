"""Writing files so that a reader never meets half of one: a temporary name, then a rename."""

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` and renames it into place once the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path` that replaces it, whole, once the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        old = temporary.with_suffix(".old")
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        if old.exists():
            shutil.rmtree(old)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as readable UTF-8 JSON, atomically."""
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    with atomic(path) as temporary:
        # Names of files that are no UTF-8 hold lone surrogates, which JSON spells `\udcfc`, as this does.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a table as parquet, atomically and without its index."""
    with atomic(path) as temporary:
        table.to_parquet(temporary, index=False)


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Writes an array as `.npy` without pickle, atomically."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def map_array(path: Path) -> NDArray[Any]:
    """Maps an `.npy` file into memory, read-only.

    Unlike `np.load(path, mmap_mode="r")`, the array does not carry the name of its file: whoever is handed
    image features must not find the way to the instructions by it.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran_order, dtype = read_header(file)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        order: Literal["F", "C"] = "F" if fortran_order else "C"
        return np.ndarray(shape, dtype, buffer=mapped, offset=file.tell(), order=order)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
