"""Features of images by the first layers of a vision-language model's language model (PRISM)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from presel.console import progress
from presel.data.prompts import IMAGE_TOKEN, Turn
from presel.errors import PreselError
from presel.models.encoder import ImageEncoder, check_finite
from presel.models.lvlm import Lvlm
from presel.models.model_files import locate
from presel.models.pretrained import load_pretrained

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import ModuleList
    from transformers import PreTrainedModel

    from presel.models.conversations import ConversationEncoder
    from presel.models.inputs import Inputs

_PROMPT: list[Turn] = [{"from": "human", "value": IMAGE_TOKEN}]


@dataclass(frozen=True)
class ImageTokenEncoder(ImageEncoder):
    """Mean hidden state of an image's tokens after the first layers of the language model.

    The prompt is the template's constant beginning and the image. Since each token attends only to those
    before it, or in its image, the image's tokens have the same hidden states in front of any question.

    Attributes:
        lvlm: The model, untuned.
        layer: Number of layers that the tokens pass; those above are not computed.
        batch_size: Images encoded at once.
    """

    lvlm: Lvlm
    layer: int
    batch_size: int = 16

    def check(self) -> None:
        """Checks that the model exists and has the layer.

        Raises:
            PreselError: If not.
        """
        from transformers import AutoConfig

        self.lvlm.check()
        path = self.lvlm.path
        config = load_pretrained(AutoConfig, locate(path), revision=self.lvlm.revision)
        n_layers = config.get_text_config().num_hidden_layers
        if self.layer > n_layers:
            raise PreselError(
                f"strategy.layer={self.layer}: the language model of {path} has {n_layers} layers; set at "
                "most as many"
            )

    def encode(
        self, batches: Sequence[Sequence[Path]], workers: int, accelerator: str = "auto"
    ) -> Iterator[NDArray[np.float16]]:
        """Encodes images batch by batch; arguments and result are those of `ImageEncoder.encode`.

        Raises:
            PreselError: If an image does not fit into the maximum length, or the model has no list of layers.
        """
        import torch

        from presel.models.conversations import ConversationEncoder
        from presel.models.hardware import device_for
        from presel.models.positions import with_positions
        from presel.models.prefetch import prefetched

        conversations = ConversationEncoder(self.lvlm)
        self._check_lengths(conversations, [image for batch in batches for image in batch])
        model = self.lvlm.load_model()
        layers = _layers(model, self.lvlm)
        del layers[self.layer :]
        model.to(device_for(accelerator))
        states: list[Tensor] = []
        layers[-1].register_forward_hook(lambda _, __, output: states.append(output))
        with torch.inference_mode():
            for batch in prefetched(batches, partial(_prompts, conversations), workers):
                inputs = batch.to(model.device, model.dtype)
                places = inputs["input_ids"] == conversations.image_token  # (n, length)
                # The tokens after the last image's see it, but are not seen by it.
                end = int(places.any(dim=0).nonzero().max()) + 1
                inputs = inputs.of_text(partial(_first, end))
                model.base_model(**with_positions(model, inputs), use_cache=False)
                hidden = states.pop().float()  # (n, end, d)
                means = [one[own].mean(dim=0) for one, own in zip(hidden, places[:, :end], strict=True)]
                features = torch.stack(means).half().cpu().numpy()  # (n, d)
                check_finite(features, self.lvlm.path)
                yield features

    def _check_lengths(self, conversations: "ConversationEncoder", images: Sequence[Path]) -> None:
        """Checks that the images fit, by the sizes in their headers, before any is encoded."""
        with progress("measuring images", len(images)) as advance:
            for image in images:
                length = conversations.length(_PROMPT, [image])
                if length > self.lvlm.max_length:
                    raise PreselError(
                        f"{image}: it takes {length} tokens, more than lvlm.max_length="
                        f"{self.lvlm.max_length}; raise it, or cap the image's size by lvlm.image_settings"
                    )
                advance(1)


def _first(end: int, tensor: "Tensor") -> "Tensor":
    return tensor[:, :end]


def _prompts(conversations: "ConversationEncoder", images: Sequence[Path]) -> "Inputs":
    from presel.models.conversations import Example

    return conversations.batch([Example([image], _PROMPT) for image in images], cut=False).without("labels")


def _layers(model: "PreTrainedModel", lvlm: Lvlm) -> "ModuleList":
    """The layers of the language model, in the list that the model itself runs through."""
    from torch.nn import ModuleList

    for name, module in model.named_modules():
        if lvlm.language_model in name.split(".") and isinstance(module, ModuleList):
            return module
    raise PreselError(
        f"lvlm.language_model: '{lvlm.language_model}' has no list of layers, whose outputs strategy=prism "
        "reads; choose a model of the Llama family"
    )
