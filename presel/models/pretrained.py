"""Loads models saved by transformers, without running code that comes with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import Any

from presel.errors import PreselError
from presel.storage.files import read_json

# Files that may refer to custom code under `auto_map`, and the class of transformers that reads each.
_READERS = {
    "config.json": "AutoConfig",
    "processor_config.json": "AutoProcessor",
    "preprocessor_config.json": "AutoImageProcessor",
    "tokenizer_config.json": "AutoTokenizer",
}


def load_pretrained(loader: Any, name: str, **settings: Any) -> Any:
    """Calls `loader.from_pretrained(name, **settings)` without running code that comes with the model.

    Raises:
        PreselError: If the model needs custom code, or one of its files is missing or damaged.
    """
    # Registers our own vision tower with transformers.
    import presel.models.efficientnet_lite  # noqa: F401

    with model_errors(f"{name} cannot be loaded"):
        return loader.from_pretrained(name, trust_remote_code=False, **settings)


@contextmanager
def model_errors(what: str) -> Iterator[None]:
    """Converts any exception of code that reads a model's files to a `PreselError` of one sentence."""
    try:
        yield
    except Exception as error:
        raise PreselError(f"{what}: {_reason(error)}") from error


def load_weights(loader: Any, name: str, **settings: Any) -> Any:
    """Loads a model as `load_pretrained` does; from pickles such as `pytorch_model.bin`, only tensors."""
    with _without_bars():
        return load_pretrained(loader, name, weights_only=True, **settings)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keeps transformers' progress bars from the terminal, as the command does for its whole process."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_folder(folder: Path) -> None:
    """Raises a `PreselError` unless a folder's `config.json` describes a model without custom code."""
    config = folder / "config.json"
    try:
        has_type = "model_type" in read_json(config)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise PreselError(f"{config}: not a JSON object ({error}); copy the model again") from error
    if not has_type:
        raise PreselError(f"{config}: it names no model_type; name the folder of a model of transformers")
    for file, reader in _READERS.items():
        path = folder / file
        if path.is_file() and b'"auto_map"' in path.read_bytes():
            import transformers

            load_pretrained(getattr(transformers, reader), str(folder))


def _reason(error: Exception) -> str:
    said = str(error).strip()
    if "trust_remote_code" in said:
        return (
            "it needs custom Python code (auto_map), which presel does not run; name a model that "
            "transformers itself implements"
        )
    if isinstance(error, UnpicklingError):
        return "its weights are a pickle that contains more than tensors, which presel does not load"
    return shorten(said, 200, placeholder=" …") or type(error).__name__
