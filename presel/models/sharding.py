"""Training by several processes: Lightning's strategies, and weights sharded over processes."""

from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from presel.models.hardware import Hardware


class Fsdp(ModelParallelStrategy):
    """FSDP2; checkpoints are single files of the trained weights, as with one process."""

    def __init__(self, processes: int) -> None:
        """Takes the number of processes that share the weights."""
        super().__init__(
            data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
        )

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Gathers only the trained weights; the frozen ones are many times as large."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        assert self.model is not None
        return get_model_state_dict(self.model, options=options)


class DeepSpeedZero3(DeepSpeedStrategy):
    """DeepSpeed's ZeRO stage 3."""

    def __init__(self, micro_batch_size: int) -> None:
        """Takes the samples per forward pass, which DeepSpeed reports."""
        super().__init__(stage=3, exclude_frozen_parameters=True, logging_batch_size_per_gpu=micro_batch_size)

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Prevents DeepSpeed from dividing the loss by the accumulated batches, as Lightning already did."""
        return super().backward(closure_loss, *args, scale_wrt_gas=False, **kwargs)


def lightning_strategy(hardware: Hardware, processes: int, micro_batch_size: int) -> Strategy | str:
    """The `strategy` argument of Lightning's `Trainer`."""
    match hardware.strategy:
        case "ddp":
            return DDPStrategy()
        case "fsdp":
            return Fsdp(processes)
        case "deepspeed_zero3":
            return DeepSpeedZero3(micro_batch_size)
        case "single":
            return "auto"


def cluster_environment(hardware: Hardware) -> ClusterEnvironment:
    """Where ranks come from: torchrun's variables. In a Slurm job Lightning would pick `SLURMEnvironment`."""
    return LightningEnvironment() if hardware.strategy == "single" else TorchElasticEnvironment()


def shard(model: torch.nn.Module, mesh: DeviceMesh) -> None:
    """Shards the weights over the processes, layer by layer."""
    for layers in reversed([module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]):
        for layer in layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def full_tensor(weight: torch.nn.Parameter) -> Tensor:
    """A weight gathered from all processes, on the CPU; every process must call this."""
    if isinstance(weight, DTensor):
        return weight.full_tensor().detach().cpu()
    if hasattr(weight, "ds_id"):  # partitioned by DeepSpeed
        from deepspeed.zero import GatheredParameters

        with GatheredParameters([weight]):
            return weight.detach().cpu().clone()
    return weight.detach().cpu()


def last_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """The checkpoint of the latest step, and that step.

    A checkpoint is a file that is written atomically; DeepSpeed's is a folder whose file `latest` is written
    last.
    """
    found = [
        (path, int(path.stem.removeprefix("step=")))
        for path in folder.glob("step=*.ckpt")
        if path.is_file() or (path / "latest").exists()
    ]
    return max(found, key=lambda one: one[1], default=None)
