"""What a model's processor makes of images: tensors, and the text that stands for them in a prompt."""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import LlavaProcessor

from presel.console import progress
from presel.data.decoding import MAX_PIXELS
from presel.data.images import image_size, map_images, open_image
from presel.errors import PreselError
from presel.models.lvlm import Lvlm
from presel.models.pretrained import model_errors

Size = tuple[int, int]

# A processor's results that describe text; all others describe images.
_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
_OF_TEXT = ("input_ids", "attention_mask", "text_replacement_offsets", "labels", *_TOKEN_TYPES)
# From this number of images on, starting worker processes takes less time than reading the headers here.
_MANY = 10_000
# Any image, for models whose images all take the same number of tokens.
_PROBE = (64, 64)
# The side of the largest square that an image is padded to.
_MAX_SIDE = math.isqrt(MAX_PIXELS)
# Square, wide and tall images, whose texts show whether a family's text depends on an image's shape.
_SHAPES = (_PROBE, (1024, 256), (256, 1024))


class ImagePreparer:
    """Prepares images as a model's processor does, those of a sample at once.

    Attributes:
        token_types: Name of the model's argument that is 1 for an image's tokens, or None if it takes none.
    """

    def __init__(self, processor: Any, lvlm: Lvlm) -> None:
        """Takes the model and its processor."""
        self._processor = processor
        self._path = lvlm.path
        self._has_settings = bool(lvlm.image_settings)
        # LLaVA-1.5 scales all images to the same size.
        self._fixed = isinstance(processor, LlavaProcessor)
        self._color = mean_color(processor.image_processor) if lvlm.pad_to_square else None
        # The text of images by all that decides it, which few sizes differ in.
        self._texts: dict[Any, list[str]] = {}
        probe = self._processed([Image.new("RGB", _PROBE)])
        self.token_types = next((name for name in _TOKEN_TYPES if any(map(any, probe.get(name, [])))), None)
        self._by_count = not self._fixed and self._only_repeats()

    def sizes(self, images: Sequence[Path]) -> list[Size]:
        """Width and height of images as they are opened, read from the files' headers if they matter."""
        return [_PROBE if self._fixed else image_size(image) for image in images]

    @property
    def takes_all(self) -> bool:
        """Whether the model takes images of any size."""
        return self._fixed

    def fault(self, size: Size) -> str | None:
        """Why the processor takes no image of this size, or None; prepares one only where it cannot count."""
        shown = square(size) if self._color is not None else size
        try:
            if hasattr(self._processor, "_get_num_multimodal_tokens"):
                self._counts([shown])
            else:
                self._blank_texts([shown])
        except PreselError as error:
            return str(error.__cause__)
        return None

    def texts(self, sizes: Sequence[Size], images: Sequence[Path] = ()) -> list[str]:
        """The text that stands for each image of a sample in its prompt, from their sizes alone.

        It depends on nothing but the sizes, and mostly only on how many tokens they mean, so that blank
        images serve to find it.

        Args:
            sizes: Width and height of each image.
            images: The images' files, for messages.

        Raises:
            PreselError: If the processor takes no image of such a size.
        """
        if not sizes:
            return []
        if self._color is not None:
            sizes = [square(size) for size in sizes]
        key = len(sizes) if self._fixed else self._tokens(sizes, images)
        if key not in self._texts:
            self._texts[key] = self._blank_texts(sizes, images)
        return self._texts[key]

    def prepare(self, images: Sequence[Path]) -> dict[str, Tensor]:
        """The tensors of a sample's images, by the model's names of its arguments; none for no image."""
        if not images:
            return {}
        opened = [open_image(image) for image in images]
        if self._color is not None:
            opened = [padded_to_square(image, self._color) for image in opened]
        found = self._processed(opened, images, return_tensors="pt")
        return {name: tensor for name, tensor in found.items() if name not in _OF_TEXT}

    def _only_repeats(self) -> bool:
        """Whether the number of tokens that the processor counts decides a text: a run in a fixed frame.

        In Pixtral's it does not: each row of an image ends by another token. And some count by other settings
        than those by which they prepare (LLaVA-NeXT by `size` instead of `crop_size`).
        """
        if not hasattr(self._processor, "_get_num_multimodal_tokens"):
            return False
        token = self._processor.image_token
        texts = [self._blank_texts([size])[0] for size in _SHAPES]
        around = {tuple(re.split(f"(?:{re.escape(token)})+", text)) for text in texts}
        if len(around) > 1 or len(around.pop()) != 2:
            return False
        counts = [self._counts([size])[0] for size in _SHAPES]
        # InternVL counts the frame too.
        return len({text.count(token) - count for text, count in zip(texts, counts, strict=True)}) == 1

    def _tokens(self, sizes: Sequence[Size], files: Sequence[Path]) -> tuple[Any, ...]:
        """What decides the text: the number of tokens of each image, or its size if its shape matters."""
        return tuple(self._counts(sizes, files)) if self._by_count else tuple(sizes)

    def _counts(self, sizes: Sequence[Size], files: Sequence[Path] = ()) -> list[int]:
        """The number of tokens of each image, as the processor counts them without preparing any."""
        sides = [(height, width) for width, height in sizes]
        with self._errors(files):
            found = self._processor._get_num_multimodal_tokens(image_sizes=sides)
        counts: list[int] = found["num_image_tokens"]
        return counts

    def _blank_texts(self, sizes: Sequence[Size], files: Sequence[Path] = ()) -> list[str]:
        blank = [Image.new("RGB", size) for size in sizes]
        found = self._processed(blank, files, return_text_replacement_offsets=True)
        return [one["replacement"] for one in found["text_replacement_offsets"][0]]

    def _processed(
        self, images: Sequence[Image.Image], files: Sequence[Path] = (), **settings: Any
    ) -> Mapping[str, Any]:
        with self._errors(files):
            found: Mapping[str, Any] = self._processor(
                images=[list(images)], text=[self._processor.image_token * len(images)], **settings
            )
        return found

    def _errors(self, files: Sequence[Path]) -> AbstractContextManager[None]:
        """Errors of the processor as one sentence, which names the images' files if there are any."""
        if not files:
            settings = " under lvlm.image_settings" if self._has_settings else ""
            return model_errors(f"{self._path}: its processor does not take an image{settings}")
        named = " or ".join(map(str, files))
        return model_errors(
            f"{named}: the processor of {self._path} does not take this image; resize it or remove its record"
        )


def refused_images(lvlm: Lvlm, root: Path, images: Sequence[str], workers: int) -> dict[str, str]:
    """The images that a model's processor does not take, each with the reason, by the sizes in their headers.

    Args:
        lvlm: The model.
        root: The image folder.
        images: Paths relative to it.
        workers: Worker processes that read the headers of many images.
    """
    preparer = ImagePreparer(lvlm.load_processor(), lvlm)
    if preparer.takes_all:
        return {}
    with progress("measuring images", len(images)) as advance:
        workers = workers if len(images) > _MANY else 0
        sizes = map_images(root, images, _image_size, workers, advance)
    faults = {size: preparer.fault(size) for size in set(sizes)}
    found = {image: faults[size] for image, size in zip(images, sizes, strict=True)}
    return {image: why for image, why in found.items() if why is not None}


def _image_size(root: Path, image: str) -> Size:
    return image_size(root / image)


def mean_color(image_processor: Any) -> tuple[int, ...]:
    """The mean color that an image processor subtracts, as LLaVA rounds it."""
    return tuple(int(255 * channel) for channel in image_processor.image_mean)


def square(size: Size) -> Size:
    """The size of an image that is padded to a square."""
    side = min(max(size), _MAX_SIDE)
    return side, side


def padded_to_square(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    """Centers an image on a square of one color, as LLaVA-1.5 does.

    A long image is shrunk first, so that the square has at most `MAX_PIXELS`: model inputs are far smaller.
    """
    if image.width == image.height:
        return image
    if max(image.size) > _MAX_SIDE:
        scale = _MAX_SIDE / max(image.size)
        width, height = (max(1, round(scale * side)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    padded = Image.new("RGB", square(image.size), color)
    padded.paste(image, ((padded.width - image.width) // 2, (padded.height - image.height) // 2))
    return padded
