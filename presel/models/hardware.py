"""What the machine offers."""

import torch


def device_for(accelerator: str) -> torch.device:
    """The device behind `cpu`, `gpu` or `auto`."""
    use_gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_gpu else "cpu")


def precision_for(accelerator: str) -> str:
    """Lightning's name of the training precision: bf16 where the device computes it natively.

    On a CPU it stays float32: most emulate bf16, and are slower by it.
    """
    use_gpu = device_for(accelerator).type == "cuda"
    return "bf16-mixed" if use_gpu and torch.cuda.is_bf16_supported() else "32-true"
