"""Integrity of stored results: a manifest lists size and digest of every file."""

import hashlib
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from presel.errors import PreselError
from presel.storage.files import read_json, sha256, write_json

MANIFEST = "manifest.json"
# Runs verify the digests of results up to this size, which takes seconds; `presel store verify` of all.
HASHED_BYTES = 2 * 10**9
# Logs and shards, not part of the result: nothing reads them later, and `wandb sync` writes to its own.
_WORKING_FILES = {"metrics", "parts", "processes", "shards", "wandb"}
_DIGEST = "sha256"


class DamagedResult(PreselError):
    """A stored result that differs from what was written."""


class _File(BaseModel):
    model_config = ConfigDict(strict=True)

    size: int
    sha256: str


class _Manifest(BaseModel):
    """The fields of every manifest."""

    model_config = ConfigDict(strict=True)

    stage: str
    label: str
    version: int
    key: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    versions: dict[str, str]
    git_commit: str | None
    finished: str
    wall_seconds: float
    measured: dict[str, Any]
    files: dict[str, _File]


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Writes a manifest of `about` and the list of files, which makes the folder a finished result."""
    listed = {
        name: {"size": path.stat().st_size, "sha256": sha256(path)} for name, path in result_files(folder)
    }
    # Normalized as it will be read: JSON has no tuples, and only strings as keys.
    manifest = json.loads(json.dumps(about | {"files": listed}))
    write_json(folder / MANIFEST, manifest | {_DIGEST: _digest(manifest)})


def measurements(returned: object, source: str) -> dict[str, Any]:
    """Measurements that a stage returned, as a manifest holds them: scalars of NumPy become Python's.

    Args:
        returned: What it returned; None for no measurements.
        source: The method that returned it.

    Raises:
        PreselError: If it is no dictionary of what JSON can hold.
    """
    if returned is None:
        return {}
    if not isinstance(returned, dict):
        raise PreselError(
            f"{source} returned a value of type {type(returned).__name__}; return a dict of measurements for "
            "the manifest, or None"
        )
    measured: dict[str, Any] = {}
    for key, value in returned.items():
        try:
            measured |= json.loads(json.dumps({key: value}, default=_plain))
        except (TypeError, ValueError, RecursionError) as error:
            raise PreselError(
                f"{source} returned a measurement {key!r} that the manifest, which is JSON, cannot hold "
                f"({error}); return text, numbers, or lists and dicts of them, with text as keys"
            ) from error
    return measured


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"it holds a value of type {type(value).__name__}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a finished result.

    Raises:
        DamagedResult: If it is damaged, or written by an earlier version, which listed no files.
    """
    file = folder / MANIFEST
    try:
        # Opening a pipe would block.
        manifest: Any = read_json(file) if file.is_file() else None
        _Manifest.model_validate(manifest)
    except (ValueError, RecursionError):
        # Without its cause, which would be reported as a configuration error.
        raise _damaged(folder, folder.parent.name, f"{file} is damaged, or of an earlier version") from None
    if manifest.pop(_DIGEST, None) != _digest(manifest):
        raise _damaged(folder, folder.parent.name, f"{file} was changed")
    return dict(manifest)


def result_files(folder: Path) -> list[tuple[str, Path]]:
    """The files of a result with their names in the manifest, sorted by name."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    named = [(path.relative_to(folder), path) for path in files if path != folder / MANIFEST]
    return sorted((name.as_posix(), path) for name, path in named if name.parts[0] not in _WORKING_FILES)


def check_result(
    folder: Path, hashed_bytes: float = HASHED_BYTES, manifest: dict[str, Any] | None = None
) -> None:
    """Checks that a finished result's files exist and have the right sizes and, if it is small, digests.

    Args:
        folder: The result.
        hashed_bytes: Digests are not checked of results above this total size.
        manifest: Its manifest, if that was read already.

    Raises:
        DamagedResult: If not.
    """
    manifest = read_manifest(folder) if manifest is None else manifest
    for fault in faults(folder, manifest, hashed_bytes):
        raise _damaged(folder, manifest["label"], fault)


def faults(folder: Path, manifest: dict[str, Any], hashed_bytes: float) -> Iterator[str]:
    """Yields a message for each damaged file of a result; see `check_result`."""
    hashes = sum(listed["size"] for listed in manifest["files"].values()) <= hashed_bytes
    for name, listed in manifest["files"].items():
        if fault := _fault(folder / name, listed["size"], listed["sha256"] if hashes else None):
            yield f"{folder / name} {fault}"


def _fault(file: Path, size: int, digest: str | None) -> str | None:
    try:
        found = file.lstat()
        if not stat.S_ISREG(found.st_mode):
            return "is no longer a file"
        if found.st_size != size:
            return f"has {found.st_size:,} bytes, not the {size:,} that were written"
        if digest is not None and sha256(file) != digest:
            return "does not hold what was written (another SHA-256)"
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except PermissionError:
        raise
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def remedy(folder: Path) -> str:
    """How the user can restore a damaged result."""
    return f"delete {folder}, then run the same command again"


def _damaged(folder: Path, label: str, fault: str) -> DamagedResult:
    return DamagedResult(f"stage '{label}': {fault}; {remedy(folder)}")


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
