"""What the machine offers."""

from dataclasses import replace
from importlib.util import find_spec

import torch

from presel.errors import PreselError
from presel.models.tune import Hardware, Precision


def device_for(accelerator: str) -> torch.device:
    """The device behind `cpu`, `gpu` or `auto`."""
    use_gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_gpu else "cpu")


def precision_for(hardware: Hardware, dtype: str) -> Precision:
    """The training precision; behind `auto`, bf16 where the device computes it natively.

    On a CPU it is float32, since most emulate bf16, and are slower by it; unless the frozen weights are in
    half precision, which only autocasting brings together with trained weights in float32.

    Args:
        hardware: Where the model is trained.
        dtype: Precision its frozen weights are loaded in.
    """
    if hardware.precision != "auto":
        return hardware.precision
    use_gpu = device_for(hardware.accelerator).type == "cuda"
    native = use_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if native or dtype != "float32" else "32-true"


def resolved(hardware: Hardware) -> Hardware:
    """The hardware with the kind of device that `auto` stands for on this machine."""
    use_gpu = device_for(hardware.accelerator).type == "cuda"
    return replace(hardware, accelerator="gpu" if use_gpu else "cpu")


def processes_on_node(hardware: Hardware) -> int:
    """How many processes run on each node."""
    if hardware.devices != "auto":
        return hardware.devices
    return torch.cuda.device_count() if device_for(hardware.accelerator).type == "cuda" else 1


def processes_in_all(hardware: Hardware) -> int:
    """How many processes run on all nodes together."""
    return hardware.nodes * processes_on_node(hardware)


def check_hardware(hardware: Hardware, batch_size: int, micro_batch_size: int) -> None:
    """Makes sure that a fine-tune can be spread as asked.

    Args:
        hardware: What is asked for.
        batch_size: Samples an optimizer step.
        micro_batch_size: Samples a forward pass of one process.

    Raises:
        PreselError: If there are too few GPUs, if the batch does not divide among the processes, or if
            DeepSpeed is missing.
    """
    use_gpu = device_for(hardware.accelerator).type == "cuda"
    here, processes = processes_on_node(hardware), processes_in_all(hardware)
    if use_gpu and here > torch.cuda.device_count():
        raise PreselError(
            f"trainer.devices={here}: this machine has {torch.cuda.device_count()} GPUs; ask for as many, or "
            "set trainer.accelerator=cpu"
        )
    if batch_size % (micro_batch_size * processes):
        raise PreselError(
            f"tune.batch_size={batch_size} does not divide into micro batches of "
            f"tune.micro_batch_size={micro_batch_size} for {processes} processes; set a multiple of "
            f"{micro_batch_size * processes}, or smaller micro batches"
        )
    if hardware.strategy == "deepspeed_zero3":
        if find_spec("deepspeed") is None:
            raise PreselError(
                'trainer=deepspeed_zero3: DeepSpeed is not installed; pip install "presel[deepspeed]", or '
                "set trainer=fsdp"
            )
        if not use_gpu:
            raise PreselError("trainer=deepspeed_zero3 runs on GPUs only; set trainer=fsdp or trainer=ddp")
