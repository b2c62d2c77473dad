"""Image encoders such as DINOv2, or the vision part of the LVLM: one feature vector per image."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from presel.component import component
from presel.data.images import open_image
from presel.errors import PreselError
from presel.models.lvlm import Lvlm
from presel.models.model_files import BUILTIN, ModelFiles, locate
from presel.models.pretrained import load_pretrained, load_weights, model_errors
from presel.storage.shards import chunks

if TYPE_CHECKING:
    from torch import Tensor


class ImageEncoder(ABC):
    """Base class of encoders: whatever makes one vector of an image.

    Attributes:
        batch_size: Images encoded at once.
    """

    batch_size: int

    @abstractmethod
    def check(self) -> None:
        """Checks the model before any work.

        Raises:
            PreselError: If it is missing or unfit.
        """

    @abstractmethod
    def encode(
        self, batches: Sequence[Sequence[Path]], workers: int, accelerator: str = "auto"
    ) -> Iterator[NDArray[np.float16]]:
        """Encodes images batch by batch.

        Args:
            batches: Paths of the images of each batch.
            workers: Worker processes that decode images; 0 decodes in this process. The result does not
                depend on it.
            accelerator: `cpu`, `gpu`, or `auto` for a GPU if there is one.

        Yields:
            Features of the next batch, (n, d), not normalized.
        """


# Names of class tokens in transformers: DINOv2 and ViT, CLIP.
_CLASS_TOKEN = re.compile(r"(^|\.)(cls_token|class_embedding|class_token)$")


@component
class Encoder(ModelFiles, ImageEncoder):
    """A vision model of transformers; features are taken from its last hidden state.

    Attributes:
        batch_size: Images encoded at once.
        pooling: `cls`, the class token, which is the first of the last hidden state (paper), or `mean` over
            all tokens.
    """

    group: ClassVar[str] = "encoder"

    batch_size: Annotated[int, Field(gt=0)] = field(default=64, compare=False)
    pooling: Literal["cls", "mean"] = "cls"

    def encode(
        self, batches: Sequence[Sequence[Path]], workers: int, accelerator: str = "auto"
    ) -> Iterator[NDArray[np.float16]]:
        """Encodes images batch by batch, decoding them in worker processes ahead of the model."""
        import torch
        from transformers import AutoImageProcessor, AutoModel

        from presel.models.hardware import device_for
        from presel.models.prefetch import prefetched

        name = locate(self.path)
        device = device_for(accelerator)
        processor = load_pretrained(AutoImageProcessor, name, revision=self.revision, backend="pil")
        model = load_weights(AutoModel, name, revision=self.revision, dtype=torch.float32)
        model = getattr(model, "vision_model", model).to(device).eval()
        has_class_token = any(_CLASS_TOKEN.search(part) for part, _ in model.named_parameters())

        def features(pixels: "Tensor") -> NDArray[np.float16]:
            output = model(pixels.to(device))
            hidden: Tensor = output.last_hidden_state  # (n, tokens, d)
            if hidden.ndim != 3:
                raise PreselError(
                    f"encoder.path: the last hidden state of {name} is no sequence of tokens (its shape is "
                    f"{tuple(hidden.shape)}); choose a vision transformer"
                )
            first, whole = hidden[:, 0], output.get("pooler_output")  # (n, d) each
            # Without a class token the first one may stand for the whole image, as in DINOv3's ConvNeXt.
            if self.pooling == "cls" and not has_class_token and (whole is None or not whole.equal(first)):
                raise PreselError(f"encoder.pooling=cls: {name} has no class token; set encoder.pooling=mean")
            pooled = first if self.pooling == "cls" else hidden.mean(dim=1)  # (n, d)
            found: NDArray[np.float16] = pooled.half().cpu().numpy()
            check_finite(found, name)
            return found

        with torch.inference_mode():
            # Its settings may have the right types and still not match its weights or any image.
            with model_errors(f"{name} fails on an image"):
                features(_pixels(processor, [Image.new("RGB", (64, 64))]))
            for pixels in prefetched(batches, partial(_opened_pixels, processor), workers):
                yield features(pixels)


@component
class LvlmEncoder(ImageEncoder):
    """The image as the untuned LVLM's language model sees it: the tokens that its projector makes of it.

    Features are the mean and the standard deviation over an image's tokens, concatenated, (2 · h,). Images
    are prepared as in tuning. The language model is loaded, but not run.

    Attributes:
        lvlm: The model, that of group `lvlm`.
        batch_size: Images encoded at once.
    """

    lvlm: Lvlm
    batch_size: Annotated[int, Field(gt=0)] = field(default=64, compare=False)

    @property
    def path(self) -> str:
        """Where the model is."""
        return self.lvlm.path

    def check(self) -> None:
        """Checks that the model exists."""
        self.lvlm.check()

    def encode(
        self, batches: Sequence[Sequence[Path]], workers: int, accelerator: str = "auto"
    ) -> Iterator[NDArray[np.float16]]:
        """Encodes images batch by batch, see `ImageEncoder.encode`."""
        import torch

        from presel.models.conversations import ConversationEncoder
        from presel.models.hardware import device_for
        from presel.models.prefetch import prefetched

        conversations = ConversationEncoder(self.lvlm)
        model: Any = self.lvlm.load_model().to(device_for(accelerator))
        with torch.inference_mode():
            for inputs, counts in prefetched(batches, conversations.images, workers):
                with model_errors(f"{self.path} fails on an image"):
                    given = inputs.to(model.device, model.dtype)
                    output = model.get_image_features(**given, return_dict=True).pooler_output
                # One tensor for all images, or one for each, or for each tile: in order, all are tokens.
                tokens = torch.cat([one.flatten(0, -2) for one in output]).float()  # (all tokens, h)
                parts = [
                    (one.mean(dim=0), one.std(dim=0, correction=0)) for one in torch.split(tokens, counts)
                ]
                features = torch.stack([torch.cat(one) for one in parts]).half().cpu().numpy()  # (n, 2 · h)
                check_finite(features, self.path)
                yield features


def check_finite(features: NDArray[np.float16], name: str) -> None:
    """Raises a `PreselError` if features by the model `name` are NaN or infinite."""
    if not np.isfinite(features).all():
        raise PreselError(
            f"{name}: its features of an image are NaN or infinite, in half precision; copy the model again, "
            "or choose another"
        )


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
