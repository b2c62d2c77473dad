"""What the machine offers."""

import torch


def device_for(accelerator: str) -> torch.device:
    """The device behind `cpu`, `gpu` or `auto`."""
    use_gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_gpu else "cpu")


def precision_for(accelerator: str, dtype: str) -> str:
    """Lightning's name of the training precision: bf16 where the device computes it natively.

    On a CPU it is float32, since most emulate bf16, and are slower by it; unless the frozen weights are in
    half precision, which only autocasting brings together with trained weights in float32.
    """
    use_gpu = device_for(accelerator).type == "cuda"
    native = use_gpu and torch.cuda.is_bf16_supported()
    return "bf16-mixed" if native or dtype != "float32" else "32-true"
