"""Image encoders such as DINOv2: one feature vector per image."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from presel.component import component
from presel.data.images import open_image
from presel.errors import PreselError
from presel.models.model_files import BUILTIN, ModelFiles, locate
from presel.models.pretrained import load_pretrained, load_weights, model_errors
from presel.storage.shards import chunks

if TYPE_CHECKING:
    from torch import Tensor


class ImageEncoder(Protocol):
    """Whatever makes one vector of an image."""

    @property
    def batch_size(self) -> int:
        """Images encoded at once."""
        ...

    def check(self) -> None:
        """Raises a `PreselError` if the model is missing or unfit."""
        ...

    def encode(
        self, batches: Sequence[Sequence[Path]], workers: int, accelerator: str = "auto"
    ) -> Iterator[NDArray[np.float16]]:
        """Encodes images batch by batch, see `Encoder.encode`."""
        ...


@component
class Encoder(ModelFiles):
    """A vision model of transformers; features are taken from its last hidden state.

    Attributes:
        batch_size: Images encoded at once.
        pooling: `cls`, token 0 of the last hidden state (paper), or `mean` over all its tokens.
    """

    group: ClassVar[str] = "encoder"

    batch_size: Annotated[int, Field(gt=0)] = field(default=64, compare=False)
    pooling: Literal["cls", "mean"] = "cls"

    def encode(
        self, batches: Sequence[Sequence[Path]], workers: int, accelerator: str = "auto"
    ) -> Iterator[NDArray[np.float16]]:
        """Encodes images batch by batch, decoding them in worker processes ahead of the model.

        Args:
            batches: Paths of the images of each batch.
            workers: Worker processes; 0 decodes in this process. The result does not depend on it.
            accelerator: `cpu`, `gpu`, or `auto` for a GPU if there is one.

        Yields:
            Features of the next batch, (n, d), not normalized.
        """
        import torch
        from transformers import AutoImageProcessor, AutoModel

        from presel.models.hardware import device_for
        from presel.models.prefetch import prefetched

        name = locate(self.path)
        device = device_for(accelerator)
        processor = load_pretrained(AutoImageProcessor, name, revision=self.revision, backend="pil")
        model = load_weights(AutoModel, name, revision=self.revision, dtype=torch.float32)
        model = getattr(model, "vision_model", model).to(device).eval()

        def features(pixels: "Tensor") -> NDArray[np.float16]:
            hidden: Tensor = model(pixels.to(device)).last_hidden_state  # (n, tokens, d)
            return (hidden[:, 0] if self.pooling == "cls" else hidden.mean(dim=1)).half().cpu().numpy()

        with torch.inference_mode():
            # Its settings may have the right types and still not match its weights or any image.
            with model_errors(f"{name} fails on an image"):
                tried = features(_pixels(processor, [Image.new("RGB", (64, 64))]))
            if not np.isfinite(tried).all():
                raise PreselError(f"{name}: its features are NaN or infinite; copy the model again")
            for pixels in prefetched(batches, partial(_opened_pixels, processor), workers):
                yield features(pixels)


def _pixels(processor: Callable[..., Any], images: Sequence[Image.Image]) -> "Tensor":
    pixels: Tensor = processor(images=images, return_tensors="pt")["pixel_values"]
    return pixels


def _opened_pixels(processor: Callable[..., Any], images: Sequence[Path]) -> "Tensor":
    return _pixels(processor, [open_image(image) for image in images])


def encode_images(images: Sequence[Path]) -> NDArray[np.float32]:
    """Features of images by the built-in encoder, (n, d), not normalized."""
    encoder = Encoder(path=f"{BUILTIN}digit_dinov2")
    batches = list(chunks(images, encoder.batch_size))
    return np.concatenate(list(encoder.encode(batches, workers=0))).astype(np.float32)
