import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from presel.models.lvlm import Lvlm
from presel.models.throughput import forward_flops, peak_flops


def test_matrices_of_language_model_and_tower_are_counted() -> None:
    model = Lvlm(path="builtin:digit_llava").load_model()
    parts = dict(model.base_model.named_children())

    def flops(part: str) -> int:
        linear = [module for module in parts[part].modules() if isinstance(module, torch.nn.Linear)]
        return sum(2 * layer.weight.numel() for layer in linear)

    # The output layer's weights are those of the embeddings.
    assert forward_flops(model) == (flops("language_model"), flops("vision_tower"))


def test_a_tower_runs_on_four_patches_for_each_image_token_of_qwen() -> None:
    config = Qwen2_5_VLConfig(
        text_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 10},
        vision_config={"depth": 1, "hidden_size": 8, "intermediate_size": 16, "num_heads": 1},
    )
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    # Query, key, value and output of attention; gate, up and down.
    assert forward_flops(model).image_token == 4 * 2 * (4 * 8 * 8 + 3 * 8 * 16)


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", "NVIDIA H200"])
def test_peak_of_hopper_is_without_sparsity(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == 989.4e12
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None
