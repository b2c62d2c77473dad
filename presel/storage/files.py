"""Atomic writes: a file is written under a temporary name and renamed once it is complete."""

import errno
import hashlib
import json
import math
import mmap
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from filelock import BaseFileLock, FileLock
from numpy.typing import NDArray

from presel.errors import PreselError


@contextmanager
def atomic(path: Path, *, private: bool = False, with_digest: bool = False) -> Iterator[Path]:
    """Yields a temporary file next to `path` and renames it to `path` if the block raises no error.

    Args:
        path: The file to write; it is synced to disk when this returns.
        private: Whether only the user may read the file.
        with_digest: Whether to write its SHA-256 to a second file, for `checked`: there is no manifest yet
            that would tell whether the file is intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        # Fails if the name exists, so that no link is followed.
        temporary.touch(mode=0o600 if private else 0o666, exist_ok=False)
        try:
            yield temporary
            if with_digest:
                # Before the file, so that no file is without one.
                with atomic(_digest_of(path)) as digest:
                    digest.write_text(sha256(temporary))
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        # Users know only the file.
        if error.filename == str(temporary):
            error.filename = str(path)
        raise


def checked(path: Path) -> Path:
    """Checks a file that was written `with_digest` against its digest, and returns its path.

    Raises:
        PreselError: If it is damaged.
    """
    digest = _digest_of(path)
    if not digest.exists() or digest.read_bytes() != sha256(path).encode():
        raise PreselError(
            f"{path} is damaged (its SHA-256 is not that in {digest.name}); delete it, then run the same "
            "command again: what is whole is kept"
        )
    return path


def _digest_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder next to `path` that replaces `path` if the block raises no error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        sync_tree(temporary)
        old = temporary.with_suffix(".old")
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        sync(path.parent)
        if old.exists():
            shutil.rmtree(old)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


@contextmanager
def resumable_folder(path: Path) -> Iterator[Path]:
    """Yields a folder that is deleted once the block is done, and stays if the block is interrupted.

    So do the folders above it that hold nothing else. Blocks that use it at the same time wait.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    lock = _acquired(path.with_suffix(".lock"))
    try:
        path.mkdir(exist_ok=True)
        yield path
        shutil.rmtree(path, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()
    for folder in made:
        # Another process may have put something into it.
        with suppress(OSError):
            folder.rmdir()


def _acquired(path: Path) -> BaseFileLock:
    """A lock whose file, and the folders above it, are deleted by those who had it before."""
    lock = FileLock(path)
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            lock.acquire()
            # A deleted file keeps nobody out.
            if path.exists():
                return lock
            lock.release()


def _temporary(path: Path) -> Path:
    """An unpredictable name next to `path`, so that nobody can place a link there beforehand."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def delete_temporary_files(folder: Path) -> int:
    """Deletes the temporary files of `atomic`, anywhere in a folder, whose process was killed.

    Returns:
        How many there were.
    """
    files = [path for path in folder.rglob(".*.tmp") if path.is_file()]
    for file in files:
        file.unlink()
    return len(files)


def sync(path: Path) -> None:
    """Syncs a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not support this for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Syncs everything in a folder to disk."""
    paths = [path for path in folder.rglob("*") if path.is_dir() or path.is_file()]
    # Concurrently, because file systems batch such requests.
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(sync, [*paths, folder]))


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as readable UTF-8 JSON, atomically."""
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    with atomic(path) as temporary:
        # File names that are not UTF-8 contain lone surrogates, which JSON writes as `\udcfc`, as this does.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_table(path: Path, table: pd.DataFrame, *, with_digest: bool = False) -> None:
    """Writes a table as parquet, without its index; see `atomic`."""
    with atomic(path, with_digest=with_digest) as temporary:
        table.to_parquet(temporary, index=False)


def read_table(path: Path, *columns: str) -> pd.DataFrame:
    """Reads a parquet table that may be damaged, such as one of an interrupted run.

    Raises:
        PreselError: If it cannot be read, or lacks one of these columns.
    """
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, "table", str(error).partition("\n")[0]) from error
    if missing := set(columns) - set(table.columns):
        raise _unreadable(path, "table", f"it has no column '{min(missing)}'")
    return table


def write_array(path: Path, array: NDArray[Any], *, with_digest: bool = False) -> None:
    """Writes an array as `.npy` without pickle; see `atomic`."""
    with atomic(path, with_digest=with_digest) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Writes arrays as one `.npz` without pickle, with a digest; see `atomic`."""
    # As `np.savez` does, which in older NumPy takes `allow_pickle` for the name of an array.
    with atomic(path, with_digest=True) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Reads what `write_arrays` wrote.

    Raises:
        PreselError: If it is damaged.
    """
    with np.load(checked(path)) as arrays:
        return dict(arrays)


def map_array(path: Path) -> NDArray[Any]:
    """Maps an `.npy` file into memory, read-only.

    Unlike `np.load(path, mmap_mode="r")`, the array does not hold the name of its file, which would lead a
    strategy from the image features to the instructions.

    Raises:
        PreselError: If the file is not a valid array.
    """
    try:
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
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, "array", str(error)) from error


def map_new_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Maps a new `.npy` file into memory, to be written through the array.

    Its space on the disk is taken first: where a disk fills up under a mapped file, the process is killed.

    Raises:
        OSError: If there is not enough space.
    """
    check_room(path.parent, math.prod(shape) * dtype.itemsize)
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def check_room(folder: Path, size: int) -> None:
    """Raises an OSError, with `ENOSPC`, if a folder's disk has less free space than this, in bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        needed = f"{size / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB are free"
        raise OSError(errno.ENOSPC, needed, str(folder))


def drop_cached_pages(array: NDArray[Any]) -> None:
    """Lets go of the memory that pages of a mapped file take; they are read again when they are needed.

    Without it, a pass over a file counts all of it as memory of this process. Other arrays stay as they are.
    """
    while isinstance(array.base, np.ndarray):
        array = array.base
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.base.madvise(mmap.MADV_DONTNEED)


def _unreadable(path: Path, kind: str, reason: str) -> PreselError:
    return PreselError(
        f"{path}: no {kind} can be read from it ({reason}); delete it, then run the same command again"
    )


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
