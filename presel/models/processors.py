"""Loads processors: chat template, tokenizer and image processor, without the parts for videos."""

import json
from collections.abc import Mapping
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

from presel.errors import PreselError
from presel.models.image_settings import check_effective
from presel.models.pretrained import load_pretrained, model_errors
from presel.storage.files import read_json

if TYPE_CHECKING:
    from transformers import ProcessorMixin

# The classes whose images another class prepares alike: SmolVLM's needs num2words, for videos only.
_FOR_IMAGES = {"SmolVLMProcessor": "Idefics3Processor"}
# The files that a processor consists of, as they are named in a model's folder.
_FILES = (
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("chat_template.jinja", "chat_template.json", "tokenizer.json", "tokenizer_config.json"),
    *("tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
)
# Where a processor's files keep the image processor's settings, and under which key of the first.
_IMAGE_SETTINGS = {"processor_config.json": "image_processor", "preprocessor_config.json": None}


def load_processor(
    name: str, revision: str | None, key: str, image_settings: Mapping[str, Any] | None = None
) -> "ProcessorMixin":
    """A processor of text and images by folder or hub name.

    Args:
        name: Folder or hub name.
        revision: Revision on the hub.
        key: The setting that errors name.
        image_settings: Arguments of the image processor that replace the saved ones, such as `max_pixels`.

    Raises:
        PreselError: If it cannot be loaded, takes no images, or a setting is unknown or without effect.
    """
    from transformers import AutoImageProcessor

    whole = _processor_class(name, revision, key)
    loader = _without_video(whole) if "video_processor" in whole.get_attributes() else whole
    processor: Any = load_pretrained(loader, name, revision=revision, backend="pil")
    # So that it can be sent to worker processes.
    processor.__class__ = whole
    if not getattr(processor, "chat_template", None):
        processor.chat_template = processor.tokenizer.chat_template
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    if getattr(processor, "image_token_ids", [None])[0] is None:
        raise _without_images(name, key)
    if image_settings:
        check_effective(processor, image_settings, name)
        processor.image_processor = load_pretrained(
            AutoImageProcessor, name, revision=revision, backend="pil", **image_settings
        )
    return processor


def copy_processor(name: str, revision: str | None, image_settings: Mapping[str, Any], folder: Path) -> None:
    """Copies the files of a model's processor into a folder, with other settings of its image processor."""
    for file in _FILES:
        if (path := _file(name, file, revision)) is not None:
            copyfile(path, folder / file)
    for file, key in _IMAGE_SETTINGS.items():
        if image_settings and (folder / file).exists():
            content = read_json(folder / file)
            own = content if key is None else content.get(key)
            if own is not None:
                own.update(image_settings)
                (folder / file).write_text(json.dumps(content, indent=2))


def _processor_class(name: str, revision: str | None, key: str) -> Any:
    """The class that a model's files name, or that transformers has for its kind of model."""
    import transformers

    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        path = _file(name, file, revision)
        if path is not None and (found := read_json(path).get("processor_class")):
            break
    else:
        config = load_pretrained(transformers.AutoConfig, name, revision=revision)
        known = transformers.PROCESSOR_MAPPING.get(type(config), None)
        if known is None:
            raise _without_images(name, key)
        found = known.__name__
    with model_errors(f"{name} cannot be loaded"):
        return getattr(transformers, _FOR_IMAGES.get(found, found))


def _without_video(whole: Any) -> Any:
    """A processor's class that leaves out its part for videos, which would need torchvision."""

    class WithoutVideo(whole):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [part for part in super().get_attributes() if part != "video_processor"]

        @classmethod
        def _get_arguments_from_pretrained(cls, *args: Any, **kwargs: Any) -> list[Any]:
            parts = super()._get_arguments_from_pretrained(*args, **kwargs)
            loaded = dict(zip(cls.get_attributes(), parts, strict=True))
            return [loaded.get(part) for part in super().get_attributes()]

    return WithoutVideo


def _without_images(name: str, key: str) -> PreselError:
    return PreselError(
        f"{key}: {name} has no processor with an image token; name a model that answers questions about "
        "images (`presel assemble` makes one of a language model)"
    )


def _file(name: str, file: str, revision: str | None) -> Path | None:
    """The path of one of a model's files, from the folder or the hub; None if it has none."""
    from transformers.utils import cached_file

    found: str | None = cached_file(
        name,
        file,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)
