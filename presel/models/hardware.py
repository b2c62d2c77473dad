"""Devices, precision and processes. PyTorch is imported inside the functions that need it."""

from dataclasses import field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field

from presel.component import component
from presel.errors import PreselError
from presel.storage.stage import fields_identity

if TYPE_CHECKING:
    import torch

Precision: TypeAlias = Literal["32-true", "bf16-mixed", "bf16-true"]


@component
class Hardware:
    """The devices and processes that models run on.

    Attributes:
        accelerator: `cpu`, `gpu`, or `auto` for a GPU if there is one.
        precision: Lightning's name of the training precision: 32-true, bf16-mixed, bf16-true, or `auto` for
            bf16 if the device supports it natively, else float32.
        strategy: How processes train together: `ddp` replicates the model, `fsdp` and `deepspeed_zero3` shard
            its weights; `single` is one process.
        devices: Processes per node, one per GPU; `auto` for all GPUs.
        nodes: Number of machines, which share the store's disk.
        node_command: Command prefix that starts a command once on each node; needed for several nodes.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = field(default="auto", compare=False)
    precision: Precision | Literal["auto"] = field(default="auto", compare=False)
    strategy: Literal["single", "ddp", "fsdp", "deepspeed_zero3"] = field(default="single", compare=False)
    devices: Annotated[int, Field(gt=0)] | Literal["auto"] = field(default=1, compare=False)
    nodes: Annotated[int, Field(gt=0)] = field(default=1, compare=False)
    node_command: list[str] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        """Checks strategy, devices and nodes against each other."""
        if self.strategy == "single" and (self.devices, self.nodes) != (1, 1):
            raise ValueError(
                "strategy 'single' is one process on one node; choose another one for more, as in trainer=ddp"
            )
        if self.nodes > 1 and not self.node_command:
            raise ValueError(f"nodes={self.nodes} needs a node_command that starts a command on each of them")

    def identity(self) -> dict[str, Any]:
        """The device type, `cpu` or `cuda`, which decides rounding; not the model or number of devices.

        A training stage adds the precision, see `presel.models.hardware.precision_for`.
        """
        return fields_identity(self) | {"device": device_for(self.accelerator).type}


def device_for(accelerator: str) -> "torch.device":
    """The device behind `cpu`, `gpu` or `auto`."""
    import torch

    use_gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_gpu else "cpu")


def precision_for(hardware: Hardware, dtype: str) -> Precision:
    """The training precision; `auto` is bf16 if the device supports it natively.

    On a CPU `auto` is float32, since most CPUs emulate bf16 slowly; unless the frozen weights are in half
    precision (`dtype`), which only autocasting can mix with trained weights in float32.
    """
    if hardware.precision != "auto":
        return hardware.precision
    import torch

    use_gpu = device_for(hardware.accelerator).type == "cuda"
    native = use_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if native or dtype != "float32" else "32-true"


def runs_under_autocast(hardware: Hardware, dtype: str) -> bool:
    """Whether a model scores and answers in bf16 though its weights are float32: if it was tuned so."""
    return dtype == "float32" and precision_for(hardware, dtype) == "bf16-mixed"


def inference_settings(hardware: Hardware, dtype: str) -> dict[str, str]:
    """What decides the results of scoring and answering besides model, data and kind of device."""
    return {"autocast": "bf16"} if runs_under_autocast(hardware, dtype) else {}


def resolved(hardware: Hardware) -> Hardware:
    """The hardware with `auto` replaced by the device type of this machine."""
    use_gpu = device_for(hardware.accelerator).type == "cuda"
    return replace(hardware, accelerator="gpu" if use_gpu else "cpu")


def processes_per_node(hardware: Hardware) -> int:
    """Number of processes per node."""
    if hardware.devices != "auto":
        return hardware.devices
    import torch

    return torch.cuda.device_count() if device_for(hardware.accelerator).type == "cuda" else 1


def total_processes(hardware: Hardware) -> int:
    """Number of processes on all nodes."""
    return hardware.nodes * processes_per_node(hardware)


def check_devices(hardware: Hardware) -> None:
    """Raises a `PreselError` if this machine has no GPU, or too few, where GPUs are requested."""
    import torch

    if device_for(hardware.accelerator).type != "cuda":
        return
    here, gpus = processes_per_node(hardware), torch.cuda.device_count()
    if not gpus or here > gpus:
        raise PreselError(
            f"trainer.devices={hardware.devices}: this machine has {gpus} GPUs; "
            + (f"set trainer.devices={gpus}, or " if gpus else "set ")
            + "trainer.accelerator=cpu"
        )


def check_precision(hardware: Hardware) -> None:
    """Raises a `PreselError` if the GPUs are other machines', and nothing says what they compute in.

    The precision is part of keys, so that it is decided here, and not by each of them.
    """
    import torch

    unknown = hardware.precision == "auto" and not torch.cuda.is_available()
    if unknown and device_for(hardware.accelerator).type == "cuda":
        raise PreselError(
            "trainer.precision=auto: this machine has no GPU to decide it by; set the one that the cluster's "
            "GPUs are to compute in, as in trainer.precision=bf16-mixed"
        )


def check_distribution(hardware: Hardware, batch_size: int, micro_batch_size: int) -> None:
    """Checks that a fine-tune can be distributed as requested; both sizes are in samples.

    Raises:
        PreselError: If the batch size is not divisible by the number of processes, or DeepSpeed is missing.
    """
    processes = total_processes(hardware)
    if batch_size % (micro_batch_size * processes):
        raise PreselError(
            f"tune.batch_size={batch_size} does not divide into micro batches of "
            f"tune.micro_batch_size={micro_batch_size} for {processes} processes; set a multiple of "
            f"{micro_batch_size * processes}, or smaller micro batches"
        )
    if hardware.strategy == "deepspeed_zero3":
        if find_spec("deepspeed") is None:
            raise PreselError(
                "trainer=deepspeed_zero3: DeepSpeed is not installed; "
                "pip install '.[deepspeed]' in the clone, or set trainer=fsdp"
            )
        if device_for(hardware.accelerator).type != "cuda":
            raise PreselError("trainer=deepspeed_zero3 runs on GPUs only; set trainer=fsdp or trainer=ddp")
