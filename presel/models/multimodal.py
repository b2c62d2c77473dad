"""Features of image and text together, from the attention outputs of a vision-language model (COINCIDE)."""

import math
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from presel.errors import PreselError
from presel.models.batching import halve_batch_on_oom
from presel.models.inputs import Inputs
from presel.models.positions import with_positions

# Number of layers that Lee et al. use.
_LAYERS = 5


def output_projections(model: PreTrainedModel, language_model: str) -> list[torch.nn.Module]:
    """The attention's output projection in each layer of the module named `language_model`.

    Raises:
        PreselError: If its attention has no module of that name.
    """
    projections = [
        module
        for name, module in model.named_modules()
        if language_model in name.split(".") and name.endswith("self_attn.o_proj")
    ]
    if not projections:
        raise PreselError(
            f"lvlm.language_model: '{language_model}' has no modules named self_attn.o_proj, from "
            "whose outputs multimodal features are computed; choose a model of the Llama family"
        )
    return projections


class MultimodalEncoder:
    """Encodes samples by a LLaVA-family model as COINCIDE does (Lee et al., EMNLP 2024, section 3.2).

    The outputs of `self_attn.o_proj` are averaged over the image tokens and over the text tokens of a prompt,
    then pass through tanh and are divided by their norm, layer by layer. All tokens but the image's count as
    text; the authors' code excludes those before the image, which are nearly the same in all samples.
    """

    def __init__(self, model: PreTrainedModel, language_model: str, image_token: int) -> None:
        """Takes a model in eval mode, see `output_projections`."""
        projections = output_projections(model, language_model)
        self._model = model
        self._image_token = image_token
        self._projections = [projections[layer] for layer in spread_layers(len(projections))]

    @torch.inference_mode()
    def features(self, batch: Inputs) -> Tensor:
        """Encodes a batch, in halves if it does not fit into memory.

        Args:
            batch: A batch of `ConversationEncoder`, of n samples.

        Returns:
            Features of norm 1, (n, 2 · layers · hidden size), float32: image tokens in the first half, text
            tokens in the second. A half without tokens is 0. On the CPU.

        Raises:
            PreselError: If a single sample does not fit.
        """
        return torch.cat(halve_batch_on_oom(lambda part: self._features(part).cpu(), batch))

    def _features(self, batch: Inputs) -> Tensor:
        inputs = batch.without("labels").to(self._model.device, self._model.dtype)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]  # (n, length) each
        image = ids == self._image_token
        members = torch.stack([image, mask.bool() & ~image], dim=1).float()  # (n, 2, length)
        weights = members / members.sum(dim=2, keepdim=True).clamp_min(1)
        means: list[Tensor] = []

        def average(_: torch.nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            means.append(weights @ output.float())  # (n, 2, hidden size)

        with ExitStack() as hooks:
            for projection in self._projections:
                hooks.enter_context(projection.register_forward_hook(average))
            self._model.base_model(**with_positions(self._model, inputs), use_cache=False)
        parts = normalize(torch.stack(means, dim=2).tanh(), dim=3)  # (n, 2, layers, hidden size)
        return parts.flatten(1) / math.sqrt(2 * len(means))


def spread_layers(n_layers: int) -> list[int]:
    """Chooses five equally spaced layers, counted from 0: 3, 7, 11, 15 and 19 of 24, as released."""
    if n_layers <= _LAYERS:
        return list(range(n_layers))
    return [number * n_layers // (_LAYERS + 1) - 1 for number in range(1, _LAYERS + 1)]
