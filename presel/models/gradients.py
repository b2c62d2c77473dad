"""Gradients of single samples with respect to LoRA's weights, randomly projected to few dimensions."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from presel.errors import PreselError
from presel.models.batching import halve_batch_on_oom
from presel.models.conversations import IGNORED
from presel.models.hardware import Hardware, device_for, runs_under_autocast
from presel.models.inputs import Inputs
from presel.models.losses import token_losses
from presel.models.lvlm import Lvlm
from presel.models.tuner import lora_targets

# Signs that are in memory at once: what fits into a CPU's cache, and what keeps a GPU busy.
_SIGNS_AT_ONCE = {"cpu": 2**21, "cuda": 2**26}
# Constants of SplitMix64 as signed numbers: PyTorch's integers wrap around at 64 bits, as it needs.
_STEP, _FIRST, _SECOND = (
    number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def check_modules(model: PreTrainedModel, lvlm: Lvlm, modules: str | None) -> None:
    """Checks that LoRA has weights in modules of a name.

    Args:
        model: The base model, with or without weights.
        lvlm: Its settings.
        modules: The name; None for all LoRA.

    Raises:
        PreselError: If it has none.
    """
    if modules is not None and not any(modules in name.split(".") for name in lora_targets(model, lvlm)):
        raise PreselError(
            f"strategy.modules={modules}: LoRA has no weights in modules of that name in {lvlm.path}; "
            "name one of its language model's modules, such as self_attn"
        )


class GradientProjector:
    """Projects the gradient of each sample's loss, the mean over its response tokens.

    A LoRA matrix is a linear layer, and a sample's gradient Σ_t δ_t x_tᵀ, with its inputs x_t and the
    gradients δ_t of its outputs, which are 0 on padding. So one backward pass gives the gradients of a whole
    batch (`torch.func.vmap` cannot pass through the model, which counts its image tokens).
    """

    def __init__(
        self, lvlm: Lvlm, adapter: Path, hardware: Hardware, dimension: int, modules: str | None = None
    ) -> None:
        """Loads the model, its LoRA not merged.

        Args:
            lvlm: The base model.
            adapter: Folder of the PEFT adapter.
            hardware: Where the model runs, and in which precision, that of tuning.
            dimension: Dimension d of the projected gradients.
            modules: Only LoRA inside modules of this name counts; None for all LoRA.

        Raises:
            PreselError: As `check_modules` does.
        """
        base = lvlm.load_model()
        check_modules(base, lvlm, modules)
        self._dtype, self._dimension = base.dtype, dimension
        self._device = device_for(hardware.accelerator)
        self._autocast = runs_under_autocast(hardware, lvlm.dtype)
        self._model = PeftModel.from_pretrained(base, str(adapter)).eval().to(self._device)
        self._layers = [
            module
            for name, module in self._model.named_modules()
            if isinstance(module, torch.nn.Linear)
            and "lora_" in name
            and (modules is None or modules in name.split("."))
        ]
        for layer in self._layers:
            layer.requires_grad_(True)

    def project(self, batch: Inputs) -> Tensor:
        """Projects the gradients of a batch, in halves if it does not fit into memory.

        Args:
            batch: What `ConversationEncoder.batch` returns, of n samples that all have a response.

        Returns:
            Shape (n, d), float32, on the CPU. Row i is g_i · S / √d, with the gradient g_i, (P,), of all
            counted LoRA weights in the model's order, and S of `signs`: its dot products and norms estimate
            those of the gradients.

        Raises:
            PreselError: If a single sample does not fit.
        """
        return torch.cat(halve_batch_on_oom(lambda part: self._project(part).cpu(), batch))

    def _project(self, batch: Inputs) -> Tensor:
        device = self._device
        projected = torch.zeros(len(batch["labels"]), self._dimension, device=device)
        step = max(1, _SIGNS_AT_ONCE[device.type] // self._dimension)
        row = 0
        for gradients in self._gradients(batch.to(device, self._dtype)):
            for part in torch.split(gradients, step, dim=1):  # (n, up to `step` weights)
                rows = range(row, row + part.shape[1])
                projected += part @ signs(rows, self._dimension, device)
                row = rows.stop
        return projected / math.sqrt(self._dimension)

    def _gradients(self, batch: Inputs) -> Iterator[Tensor]:
        """The samples' gradients with respect to each LoRA matrix, (n, weights of the matrix)."""
        seen: dict[torch.nn.Module, tuple[Tensor, Tensor]] = {}

        def remember(layer: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[layer] = inputs[0].detach(), output  # (n, t, in), (n, t, out)

        with ExitStack() as hooks:
            for layer in self._layers:
                hooks.enter_context(layer.register_forward_hook(remember))
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._autocast):
                losses = token_losses(self._model, **batch)  # (n, p)
        tokens = (batch["labels"][:, 1:] != IGNORED).sum(dim=1)  # (n,)
        loss = (losses.sum(dim=1) / tokens).sum()
        inputs, outputs = zip(*(seen[layer] for layer in self._layers), strict=True)
        for given, change in zip(inputs, torch.autograd.grad(loss, outputs), strict=True):
            yield torch.einsum("nto,nti->noi", change.float(), given.float()).flatten(1)


def signs(rows: range, dimension: int, device: torch.device) -> Tensor:
    """Consecutive rows of a matrix of independent random signs (Rademacher), (len(rows), dimension), ±1.

    The bits of SplitMix64 (Steele, Lea and Flood, 2014) from state 0: each row can be made on its own, and
    is the same on every device, unlike what PyTorch's generators draw.
    """
    words = math.ceil(dimension / 64)  # in a row
    state = torch.arange(rows.start * words + 1, rows.stop * words + 1, device=device) * _STEP
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    state = state ^ _shifted(state, 31)
    places = torch.arange(8, dtype=torch.uint8, device=device)
    bits = (state.view(torch.uint8)[:, None] >> places) & 1  # (bytes, 8)
    return bits.view(len(rows), -1)[:, :dimension].float().mul_(2).sub_(1)


def _shifted(numbers: Tensor, places: int) -> Tensor:
    """Shifts 64-bit numbers to the right, filling with zeros; `>>` would repeat the sign."""
    return (numbers >> places) & ((1 << (64 - places)) - 1)
