import pytest
import torch

from presel.models.lvlm import Lvlm
from presel.models.throughput import matrix_parameters, peak_flops


def test_matrices_of_tower_and_language_model_are_counted() -> None:
    model = Lvlm(path="builtin:digit_llava").load_model()
    sizes = {"language_model": 0, "vision_tower": 0}
    for name, module in model.base_model.named_children():
        if name in sizes:
            linear = [part for part in module.modules() if isinstance(part, torch.nn.Linear)]
            sizes[name] = sum(layer.weight.numel() for layer in linear)
    # The output layer's weights are those of the embeddings.
    assert list(matrix_parameters(model).values()) == list(sizes.values())


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", "NVIDIA H200"])
def test_peak_of_hopper_is_without_sparsity(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == 989.4e12
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None
