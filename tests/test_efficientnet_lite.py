"""The vision tower of convolutions: padding, layout of its features, names of published weights."""

import pytest
import torch

from presel.models.efficientnet_lite import (
    EfficientNetLite,
    EfficientNetLiteConfig,
    _SamePadded,
    from_checkpoint,
)

TINY = EfficientNetLiteConfig(width=0.25, depth=0.5, head_size=16, hidden_size=16 + 4 * 32)


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "before"), [(8, 3, 2, 0), (9, 3, 2, 1), (8, 5, 2, 1), (7, 5, 1, 2)]
)
def test_padding_is_that_of_tensorflow(side: int, kernel: int, stride: int, before: int) -> None:
    convolution = _SamePadded(1, 1, kernel, stride, bias=False)
    torch.nn.init.ones_(convolution.weight)
    ones = torch.ones(1, 1, side, side)
    sums = convolution(ones)[0, 0]
    assert sums.shape == (-(-side // stride),) * 2
    # The first window lies over as many zeros as precede the first pixel.
    assert sums[0, 0] == min(kernel - before, side) ** 2


@torch.no_grad()
def test_fine_features_stand_beside_the_coarse_ones_of_their_place() -> None:
    torch.manual_seed(0)
    tower = EfficientNetLite(TINY).eval()
    seen: list[torch.Tensor] = []
    tower.blocks[tower._last_fine].register_forward_hook(lambda *call: seen.append(call[2]))
    states = tower(torch.randn(2, 3, 64, 64)).last_hidden_state.unflatten(1, (2, 2))  # (n, rows, columns, d)
    fine = seen[0]
    assert fine.shape == (2, 32, 4, 4)
    quarters = fine[1, :, 2:4, 0:2].flatten()
    assert (states[1, 1, 0, TINY.head_size :] == quarters).all()


@torch.no_grad()
def test_tuning_sees_the_features_of_inference() -> None:
    torch.manual_seed(0)
    tower = EfficientNetLite(TINY).eval()
    pixels = torch.randn(4, 3, 64, 64)
    before = tower(pixels).last_hidden_state
    torch.nn.Sequential(tower).train()
    assert (tower(pixels).last_hidden_state == before).all()


def test_lite2_has_the_published_number_of_weights() -> None:
    """6.1 million with the classifier of 1,000 classes (Tan & Le)."""
    with torch.device("meta"):
        tower = EfficientNetLite(EfficientNetLiteConfig())
    assert round((sum(weight.numel() for weight in tower.parameters()) + 1281 * 1000) / 1e6, 1) == 6.1


@torch.no_grad()
def test_published_names() -> None:
    torch.manual_seed(0)
    tower = EfficientNetLite(TINY).eval()
    units = {3: ("_expand_conv", "_depthwise_conv", "_project_conv"), 2: ("_depthwise_conv", "_project_conv")}
    outside = {"stem.0": "_conv_stem", "stem.1": "_bn0", "head.0": "_conv_head", "head.1": "_bn1"}
    norms = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    published = {"_fc.weight": torch.zeros(1)}
    for name, weight in tower.state_dict().items():
        module, parameter = name.rsplit(".", 1)
        place = module.split(".")
        if place[0] == "blocks":
            names = units[len(tower.blocks[int(place[1])].layers)]
            unit = names[int(place[3])]
            module = f"_blocks.{place[1]}.{norms[unit] if place[4] == '1' else unit}"
        else:
            module = outside[module]
        published[f"{module}.{parameter}"] = weight
    other = EfficientNetLite(TINY).eval()
    other.load_state_dict(from_checkpoint(published))
    pixels = torch.randn(1, 3, 64, 64)
    assert (other(pixels).last_hidden_state == tower(pixels).last_hidden_state).all()
