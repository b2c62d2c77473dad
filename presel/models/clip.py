"""CLIP models: embeddings of images and of conversations."""

from collections.abc import Iterator, Sequence
from dataclasses import field
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from presel.component import component
from presel.data.images import open_image
from presel.data.prompts import IMAGE_TOKEN, Turn
from presel.errors import PreselError
from presel.models.model_files import ModelFiles, locate
from presel.models.pretrained import load_pretrained, load_weights, model_errors

if TYPE_CHECKING:
    from transformers import BatchFeature, CLIPProcessor

    from presel.models.conversations import Example

_SPEAKERS = {"human": "USER", "gpt": "ASSISTANT"}


@component
class Clip(ModelFiles):
    """A CLIP model of transformers.

    Attributes:
        batch_size: Samples embedded at once.
    """

    group: ClassVar[str] = "clip"

    batch_size: Annotated[int, Field(gt=0)] = field(default=64, compare=False)

    def check(self) -> None:
        """Checks that the model exists and is a CLIP.

        Raises:
            PreselError: If there is no such model, or it is not a CLIP.
        """
        from transformers import CLIPConfig

        super().check()
        config, _ = CLIPConfig.get_config_dict(locate(self.path), revision=self.revision)
        kind = config.get("model_type")
        if kind != CLIPConfig.model_type:
            raise PreselError(f"clip.path: '{self.path}' is a model of type '{kind}'; name a CLIP")

    def embed(
        self, batches: Sequence[Sequence["Example"]], workers: int, accelerator: str = "auto"
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Embeds samples batch by batch; worker processes decode and tokenize ahead of the model.

        Args:
            batches: The samples of each batch, with one image or several; texts beyond the model's maximum
                length are truncated.
            workers: Worker processes; 0 prepares in this process. The result does not depend on it.
            accelerator: `cpu`, `gpu`, or `auto` for a GPU if there is one.

        Yields:
            Embeddings of norm 1 of the next batch's images and texts, (n, d) each; that of several images is
            the direction of their mean.
        """
        import torch
        from transformers import AutoProcessor, CLIPModel

        from presel.models.hardware import device_for
        from presel.models.prefetch import prefetched

        name = locate(self.path)
        device = device_for(accelerator)
        processor = load_pretrained(AutoProcessor, name, revision=self.revision, backend="pil")
        model = load_weights(CLIPModel, name, revision=self.revision, dtype=torch.float32)
        model = model.to(device).eval()
        prepare = partial(_inputs, processor, model.config.text_config.max_position_embeddings)
        with torch.inference_mode():
            # Its settings may have the right types and still not match its weights or any image.
            with model_errors(f"{name} fails on an image and a text"):
                tried = processor(images=[Image.new("RGB", (64, 64))], text=["a"], return_tensors="pt")
                model(**tried.to(device))
            for batch, inputs in zip(batches, prefetched(batches, prepare, workers), strict=True):
                output = model(**inputs.to(device))
                images = output.image_embeds.cpu().numpy()
                images = mean_directions(images, [len(example.images) for example in batch])
                yield images, output.text_embeds.cpu().numpy()


def mean_directions(vectors: NDArray[np.float32], counts: Sequence[int]) -> NDArray[np.float32]:
    """Means of consecutive groups of `counts` vectors, scaled to norm 1: (m, d), (n,) -> (n, d)."""
    if len(counts) == len(vectors):
        return vectors
    sums = np.add.reduceat(vectors, np.cumsum([0, *counts[:-1]]))  # (n, d)
    means: NDArray[np.float32] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return means


def clip_text(conversations: Sequence[Turn]) -> str:
    """A conversation as text for CLIP: `USER: … ASSISTANT: …`, without the image token."""
    return " ".join(
        f"{_SPEAKERS[turn['from']]}: {turn['value'].replace(IMAGE_TOKEN, '').strip()}"
        for turn in conversations
    )


def _inputs(processor: "CLIPProcessor", max_length: int, examples: Sequence["Example"]) -> "BatchFeature":
    return processor(
        images=[open_image(image) for example in examples for image in example.images],
        text=[clip_text(example.conversations) for example in examples],
        padding=True,
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    )
