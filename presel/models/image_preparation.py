"""What a model's processor makes of images: tensors, and the text that stands for them in a prompt."""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import LlavaProcessor

from presel.data.images import image_size, open_image
from presel.models.lvlm import Lvlm
from presel.models.pretrained import model_errors

Size = tuple[int, int]

# A processor's results that describe text; all others describe images.
_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
_OF_TEXT = ("input_ids", "attention_mask", "text_replacement_offsets", "labels", *_TOKEN_TYPES)
# Any image, for models whose images all take the same number of tokens.
_PROBE = (64, 64)
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
            sizes = [(max(size), max(size)) for size in sizes]
        with self._errors(images):
            key = len(sizes) if self._fixed else self._tokens(sizes)
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
        """Whether the number of tokens decides a text: a run of image tokens in a fixed frame.

        In Pixtral's it does not: each row of an image ends by another token.
        """
        if not hasattr(self._processor, "_get_num_multimodal_tokens"):
            return False
        repeated = re.compile(f"(?:{re.escape(self._processor.image_token)})+")
        around = {tuple(repeated.split(self._blank_texts([size])[0])) for size in _SHAPES}
        return len(around) == 1 and len(around.pop()) == 2

    def _tokens(self, sizes: Sequence[Size]) -> tuple[Any, ...]:
        """What decides the text: the number of tokens of each image, or its size if its shape matters."""
        if not self._by_count:
            return tuple(sizes)
        count = self._processor._get_num_multimodal_tokens
        return tuple(count(image_sizes=[(height, width) for width, height in sizes])["num_image_tokens"])

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
            return model_errors(f"{self._path}: its processor does not take an image")
        named = " or ".join(map(str, files))
        return model_errors(
            f"{named}: the processor of {self._path} does not take this image; resize it or remove its record"
        )


def mean_color(image_processor: Any) -> tuple[int, ...]:
    """The mean color that an image processor subtracts, as LLaVA rounds it."""
    return tuple(int(255 * channel) for channel in image_processor.image_mean)


def padded_to_square(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    """Centers an image on a square of one color, as LLaVA-1.5 does."""
    if image.width == image.height:
        return image
    side = max(image.size)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
