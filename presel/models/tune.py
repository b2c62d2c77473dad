"""Settings of a fine-tune."""

from dataclasses import field
from typing import Annotated, Any

from pydantic import Field

from presel.component import component
from presel.storage.stage import fields_identity

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


@component
class Tune:
    """A fine-tune: LoRA on the language model, the projector in full.

    Attributes:
        lr: Peak learning rate of the LoRA weights.
        projector_lr: Peak learning rate of the projector.
        batch_size: Samples per optimizer step.
        micro_batch_size: Samples per forward pass; gradients accumulate over `batch_size / micro_batch_size`.
            It affects gradients only by the dropout masks drawn.
        epochs: Passes over the training set.
        lora_rank: Rank of the LoRA matrices.
        lora_alpha: LoRA's scale is `lora_alpha / lora_rank`.
        lora_dropout: Dropout on the input of the LoRA matrices.
        weight_decay: AdamW's weight decay.
        warmup_share: Share of the steps with linear warm-up, before the cosine decay.
        warmup_from_zero: Whether the first step has rate 0, as in transformers' schedule (and LLaVA's
            training); otherwise every step trains.
        max_grad_norm: Gradients are clipped to this norm; None for no clipping.
        gradient_checkpointing: Recompute activations in the backward pass, to save memory.
        compile: Compile the model (torch.compile): takes minutes at the start, faster steps on a GPU.
        checkpoint_steps: Optimizer steps between two checkpoints to resume from.
    """

    lr: Positive
    projector_lr: Positive
    batch_size: Annotated[int, Field(gt=0)]
    micro_batch_size: Annotated[int, Field(gt=0)]
    epochs: Annotated[int, Field(gt=0)] = 1
    lora_rank: Annotated[int, Field(gt=0, le=65_536)]
    lora_alpha: Positive
    lora_dropout: Share = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_share: Share = 0.03
    warmup_from_zero: bool = False
    max_grad_norm: Positive | None = None
    gradient_checkpointing: bool = field(default=False, compare=False)
    compile: bool = field(default=False, compare=False)
    checkpoint_steps: Annotated[int, Field(gt=0)] = field(default=100, compare=False)

    def identity(self) -> dict[str, Any]:
        """The fields; compiled, a model draws other dropout masks."""
        return fields_identity(self) | ({"compile": True} if self.compile else {})

    def __post_init__(self) -> None:
        """Checks the batch sizes against each other."""
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size "
                f"({self.micro_batch_size})"
            )
