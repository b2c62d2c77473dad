"""Folders and hub names of models: locating, checking and hashing them."""

import hashlib
import json
import zipfile
from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from presel.component import component
from presel.errors import PreselError
from presel.models.pretrained import check_folder, load_pretrained, model_errors
from presel.storage.files import sha256
from presel.storage.stage import fields_identity

BUILTIN = "builtin:"
CONFIG = "config.json"
_HUB_TIMEOUT_S = 10
# Larger files of weights are hashed in parts: reading gigabytes takes longer than some stages.
_WHOLE_BYTES = 2**26
# Bytes of a tensor's beginning, middle and end that are read of these.
_PART_BYTES = 2**16


@component
class ModelFiles:
    """Base class of components that load a saved model.

    Attributes:
        path: Folder, hub name, or `builtin:NAME`.
        revision: Revision on the hub.
        group: The config group that error messages name.
    """

    group: ClassVar[str]

    path: str
    revision: str | None = None

    def check(self) -> None:
        """Checks that the model exists.

        Raises:
            PreselError: If `path` is neither a folder with a model nor the name of one on the hub or in its
                cache.
        """
        check_model(self.path, self.revision, f"{self.group}.path")

    def identity(self) -> dict[str, Any]:
        """The fields, with the model's content in place of its path."""
        return fields_identity(self) | {"path": model_fingerprint(self.path, self.revision)}


def digits_warning(parts: Iterable[str], remedy: str) -> str:
    """The warning that parts are made for the built-in digit scenes, where images may be others."""
    return f"made for the built-in digit scenes, not for other images: {', '.join(parts)}; {remedy}"


def locate(path: str) -> str:
    """Resolves `builtin:NAME` to the folder of a model that comes with the package, and expands `~`."""
    if not path.startswith(BUILTIN):
        return str(Path(path).expanduser()) if path.startswith("~") else path
    return str(files("presel") / "assets" / path.removeprefix(BUILTIN))


def check_model(path: str, revision: str | None, key: str) -> None:
    """Raises a `PreselError` that names the setting `key` if a model's configuration cannot be read."""
    folder = Path(locate(path))
    if (folder / CONFIG).exists():
        check_folder(folder)
        return
    # A name on the hub is NAME or OWNER/NAME.
    if folder.exists() or path.startswith((BUILTIN, "/", ".", "~")) or path.count("/") > 1:
        raise PreselError(
            f"{key}: no model in {folder}: it has no config.json; name a model's folder; `presel run "
            f"--help {key.partition('.')[0]}` says which models are made first, and by what"
        )
    try:
        _check_hub(path, revision)
    except PreselError as error:
        raise PreselError(
            f"{key}: '{path}' is no folder, and the hub gives no model of that name ({error}); check the "
            "path or the name"
        ) from error


def _check_hub(name: str, revision: str | None) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(name, CONFIG, revision=revision), str):
        # A single request first: transformers retries for half a minute, for a mistyped folder as well.
        with model_errors(name):
            get_hf_file_metadata(hf_hub_url(name, CONFIG, revision=revision), timeout=_HUB_TIMEOUT_S)
    from transformers import AutoConfig

    load_pretrained(AutoConfig, name, revision=revision)


def model_fingerprint(path: str, revision: str | None) -> str:
    """Identifies a model's content: a hub model by name and revision, a folder by a digest of its files.

    Of a safetensors file above 64 MiB its header counts, and of each tensor the beginning, the middle and the
    end; of one of PyTorch's the checksums of its tensors. So a copy of a model is the same model, wherever
    and whenever it was made, and another projector in a large model makes another one.

    Raises:
        PreselError: If the header of a large file of weights cannot be read.
    """
    folder = Path(locate(path))
    if not folder.is_dir():
        return f"{path}@{revision}"
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja"}:
            digest.update(f"{file.name} {_content(file)}\n".encode())
    return digest.hexdigest()


def _content(file: Path) -> str:
    state = file.stat()
    return _digest(file, state.st_size, state.st_mtime_ns)


# A run asks for the same model several times.
@lru_cache
def _digest(file: Path, size: int, changed: int) -> str:
    if size <= _WHOLE_BYTES:
        return sha256(file)
    if file.suffix == ".safetensors":
        return _digest_of_tensors(file)
    if zipfile.is_zipfile(file):
        # As PyTorch writes it, with a checksum of each tensor.
        with zipfile.ZipFile(file) as archive:
            tensors = [(one.filename, one.file_size, one.CRC) for one in archive.infolist()]
        return hashlib.sha256(json.dumps(tensors).encode()).hexdigest()
    return sha256(file)


def _digest_of_tensors(file: Path) -> str:
    with file.open("rb") as opened:
        # The length of the header, the header, which says where each tensor lies behind it, the tensors.
        length = int.from_bytes(opened.read(8), "little")
        try:
            header = json.loads(opened.read(length))
            places = sorted(one["data_offsets"] for name, one in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
            raise PreselError(f"{file}: its header cannot be read ({error}); get the file again") from error
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        for start, end in places:
            last = max(start, end - _PART_BYTES)
            # A small tensor is one part.
            for part in sorted({start, (start + last) // 2, last}):
                opened.seek(8 + length + part)
                digest.update(opened.read(min(_PART_BYTES, end - start)))
    return digest.hexdigest()
