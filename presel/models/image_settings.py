"""Checks of `lvlm.image_settings`: settings that change nothing, or that the model's weights do not fit."""

import inspect
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image

from presel.errors import PreselError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Arguments of every image processor that say how it is called, not what it makes of an image.
_OF_CALLS = {"data_format", "input_data_format", "device", "return_tensors", "disable_grouping"}
# What a model calls a setting of its image processor that its weights fit.
_OF_MODEL = {
    "crop_size": "image_size",
    "image_grid_pinpoints": "image_grid_pinpoints",
    "merge_size": "spatial_merge_size",
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
}
# Wide and tall.
_SHAPES = ((96, 32), (32, 96))


def check_effective(processor: Any, settings: Mapping[str, Any], name: str) -> None:
    """Checks that every setting changes what a processor makes of images, in other programs too.

    All image processors accept the arguments of any, and ignore most. Some values are decided by the whole
    processor, whatever its image processor says: Gemma 3's does not pan and scan, and InternVL's cuts tiles.

    Args:
        processor: The model's processor, with the saved settings.
        settings: Those that shall replace them.
        name: The model's name for messages.

    Raises:
        PreselError: If not.
    """
    from transformers.processing_utils import ImagesKwargs

    images = type(processor.image_processor)
    accepted = set(images.valid_kwargs.__annotations__)
    of_family = accepted - ImagesKwargs.__annotations__.keys()
    read = inspect.signature(images._preprocess).parameters.keys()
    decided: Mapping[str, Any] = getattr(processor, "images_kwargs", {})
    effective = accepted & (of_family | read) - _OF_CALLS - decided.keys()
    for key in sorted(settings.keys() - effective):
        if key in decided:
            what = f"always runs with {key}={decided[key]}, whatever is set"
        else:
            what = f"ignores '{key}'" if key in accepted else f"has no '{key}'"
        raise PreselError(
            f"lvlm.image_settings: the image processor of {name} {what}; it has "
            f"{', '.join(sorted(effective))}"
        )


def check_fitting(config: "PreTrainedConfig", processor: Any, settings: Mapping[str, Any], name: str) -> None:
    """Checks that images are cut and scaled as the model's weights need them.

    Args:
        config: The model's configuration.
        processor: Its processor, with these settings.
        settings: The settings.
        name: The model's name for messages.

    Raises:
        PreselError: If not.
    """
    vision = getattr(config, "vision_config", None)
    for key in sorted(settings.keys() & _OF_MODEL.keys()):
        needed = [getattr(part, _OF_MODEL[key], None) for part in (config, vision)]
        if any(one is not None and json.dumps(one) != json.dumps(settings[key]) for one in needed):
            value = next(one for one in needed if one is not None)
            raise PreselError(
                f"lvlm.image_settings.{key}={settings[key]}: the weights of {name} need {value}; remove it"
            )
    size = getattr(vision, "image_size", None)
    if size is None:
        return
    images = [processor.image_processor([Image.new("RGB", shape)], return_tensors="pt") for shape in _SHAPES]
    sides = {tuple(one["pixel_values"].shape[-2:]) for one in images}
    height, width = (size, size) if isinstance(size, int) else size
    # Where images keep their shape (Pixtral), any size will do.
    if len(sides) == 1 and sides != {(height, width)}:
        tall, wide = sides.pop()
        raise PreselError(
            f"lvlm.image_settings: images would have {wide} × {tall} pixels, where the weights of {name} "
            f"need {width} × {height}; remove what scales or crops them"
        )
