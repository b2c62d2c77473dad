"""The settings of a fine-tune and of the machine it runs on."""

from dataclasses import field
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field
from pydantic.dataclasses import dataclass as component

from presel.component import STRICT

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Precision: TypeAlias = Literal["32-true", "bf16-mixed", "bf16-true"]


@component(frozen=True, kw_only=True, config=STRICT)
class Tune:
    """A LoRA fine-tune of the language model, the projector trained in full beside it.

    Attributes:
        lr: Peak learning rate of the LoRA weights.
        projector_lr: Peak learning rate of the projector.
        batch_size: Samples an optimizer step.
        micro_batch_size: Samples a forward pass; gradients accumulate over `batch_size / micro_batch_size`.
            It changes no gradient but by dropout's draws.
        epochs: Passes over the training set.
        lora_rank: Rank of the LoRA matrices.
        lora_alpha: LoRA's scale is `lora_alpha / lora_rank`.
        lora_dropout: Dropout in front of the LoRA matrices.
        weight_decay: AdamW's weight decay.
        warmup_share: Share of the steps in which the rate rises linearly, before it falls as a cosine.
        warmup_from_zero: Whether the first step has rate 0, as in transformers' schedule (and LLaVA's
            training); otherwise every step trains.
        max_grad_norm: Gradients are clipped to this norm; None for no clipping.
        gradient_checkpointing: Recompute activations in the backward pass, to save memory.
        compile: Compile the model first (torch.compile): minutes at the start, faster steps on a GPU.
        checkpoint_steps: Optimizer steps between two checkpoints to resume from.
    """

    lr: Positive
    projector_lr: Positive
    batch_size: Annotated[int, Field(gt=0)]
    micro_batch_size: Annotated[int, Field(gt=0)]
    epochs: Annotated[int, Field(gt=0)] = 1
    lora_rank: Annotated[int, Field(gt=0)]
    lora_alpha: Positive
    lora_dropout: Share = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_share: Share = 0.03
    warmup_from_zero: bool = False
    max_grad_norm: Positive | None = None
    gradient_checkpointing: bool = field(default=False, compare=False)
    compile: bool = field(default=False, compare=False)
    checkpoint_steps: Annotated[int, Field(gt=0)] = field(default=200, compare=False)

    def __post_init__(self) -> None:
        """Checks what a single field cannot say."""
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size "
                f"({self.micro_batch_size})"
            )


@component(frozen=True, kw_only=True, config=STRICT)
class ScoreNet:
    """How a net that weighs samples by their scores is trained beside the model (Self-Filter).

    Attributes:
        epochs: Passes over the whole pool, in place of the model's own.
        lr: Peak learning rate of the net.
    """

    epochs: Annotated[int, Field(gt=0)] = 3
    lr: Positive = 2e-5


@component(frozen=True, kw_only=True, config=STRICT)
class Hardware:
    """Where models run.

    Attributes:
        accelerator: `cpu`, `gpu`, or `auto` for a GPU if there is one.
        precision: Lightning's name of the training precision, or `auto` for bf16 where the device
            computes it natively, else float32.
        strategy: How processes train together: `ddp` holds the model in each, `fsdp` and `deepspeed_zero3`
            spread its weights over all; `single` is one process.
        devices: Processes on each node, one a GPU; `auto` for all GPUs.
        nodes: Machines, which share the store's disk.
        node_command: Command that starts the one after it once on each node; read where there are several.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Precision | Literal["auto"] = "auto"
    strategy: Literal["single", "ddp", "fsdp", "deepspeed_zero3"] = field(default="single", compare=False)
    devices: Annotated[int, Field(gt=0)] | Literal["auto"] = field(default=1, compare=False)
    nodes: Annotated[int, Field(gt=0)] = field(default=1, compare=False)
    node_command: list[str] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        """Checks what a single field cannot say."""
        if self.strategy == "single" and (self.devices, self.nodes) != (1, 1):
            raise ValueError(
                "strategy 'single' is one process on one node; choose another one for more, as in trainer=ddp"
            )
        if self.nodes > 1 and not self.node_command:
            raise ValueError(f"nodes={self.nodes} needs a node_command that starts a command on each of them")

    def identity(self) -> dict[str, Any]:
        """The kind of device, `cpu` or `cuda`, on which rounding depends; not which one, nor how many.

        A stage that trains adds the precision, see `presel.models.hardware.precision_for`.
        """
        from presel.models.hardware import device_for

        return {"device": device_for(self.accelerator).type}
