"""EfficientNet-Lite (Tan & Le, 2019, in the variant for mobile devices) as a vision tower of transformers.

transformers has EfficientNet only with squeeze-and-excitation, which the Lite variant leaves out. Importing
this module registers the class, so that `AutoModel` and LLaVA's classes load folders that name it.
"""

import math
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_unshuffle
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

_BATCH_NORM_EPSILON = 1e-3
_STEM_CHANNELS = 32


class _Stage(NamedTuple):
    """Consecutive blocks of one kind, before scaling; only the first has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


# EfficientNet-B0, which all variants scale.
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


class EfficientNetLiteConfig(PreTrainedConfig):  # type: ignore[misc]
    """Size of an EfficientNet-Lite; the defaults are Lite2 at 224 pixels.

    Attributes:
        image_size: Side of the square input in pixels.
        patch_size: Pixels between two positions of the output, in each direction.
        head_size: Channels of the last layer.
        hidden_size: Channels of the output: those of the last layer, and of 2 x 2 finer positions.
        width: Factor of the stages' channels.
        depth: Factor of the stages' numbers of blocks.
    """

    model_type = "efficientnet_lite"

    image_size: int = 224
    patch_size: int = 32
    head_size: int = 1280
    hidden_size: int = 1760
    width: float = 1.1
    depth: float = 1.2


class EfficientNetLite(PreTrainedModel):  # type: ignore[misc]
    """The convolutional network without its classifier, with finer features beside those of the last layer.

    The last layer has one position in 32 x 32 pixels, too coarse for small things. What the blocks of 16 x 16
    pixels give for the four quarters of a position is appended to its features, so that the number of
    positions stays.
    """

    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        """Builds the layers, with random weights."""
        super().__init__(config)
        self.stem = _convolution(3, _STEM_CHANNELS, kernel=3, stride=2)
        blocks: list[_Block] = []
        channels = _STEM_CHANNELS
        for number, stage in enumerate(_STAGES):
            out = _scaled_channels(stage.channels, config.width)
            # The first and the last stage keep their single block.
            scaled = 0 < number < len(_STAGES) - 1
            for repeat in range(math.ceil(stage.repeats * config.depth) if scaled else stage.repeats):
                stride = 1 if repeat else stage.stride
                blocks.append(_Block(channels, out, stage.kernel, stride, stage.expansion))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self._last_fine = max(number for number, block in enumerate(blocks) if block.stride > 1) - 1
        self.head = _convolution(channels, config.head_size, kernel=1)
        self.post_init()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: batch statistics in tuning would give other features than in inference."""
        kept: Self = super().train(False)
        return kept

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, return_dict: bool = True, **_: Any
    ) -> BaseModelOutput:
        """Computes the features of every position, rows first.

        Args:
            pixel_values: Shape (n, 3, height, width).
            output_hidden_states: Ignored: the last layer's output is always given, as the only hidden state.
            return_dict: Ignored.

        Returns:
            `last_hidden_state`, (n, positions, hidden size).
        """
        # Depthwise convolutions take half the time in this layout on CPUs.
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        features = self.stem(pixel_values)
        for number, block in enumerate(self.blocks):
            features = block(features)
            if number == self._last_fine:
                fine = pixel_unshuffle(features, 2)  # (n, 4 * channels, rows, columns)
        features = torch.cat([self.head(features), fine], dim=1)  # (n, hidden size, rows, columns)
        states = features.flatten(2).transpose(1, 2)
        return BaseModelOutput(last_hidden_state=states, hidden_states=(states,))


class _Block(nn.Module):
    """An inverted bottleneck: expansion, depthwise convolution, projection."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        expand = [_convolution(channels, wide, kernel=1)] if expansion > 1 else []
        depthwise = _convolution(wide, wide, kernel=kernel, stride=stride, groups=wide)
        self.layers = nn.Sequential(*expand, depthwise, _convolution(wide, out, kernel=1, activation=False))
        self.stride = stride
        self.has_shortcut = stride == 1 and channels == out

    def forward(self, features: Tensor) -> Tensor:
        transformed: Tensor = self.layers(features)
        return transformed + features if self.has_shortcut else transformed


def _convolution(
    channels: int, out: int, *, kernel: int, stride: int = 1, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    layers = [
        _SamePadded(channels, out, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(out, eps=_BATCH_NORM_EPSILON),
    ]
    return nn.Sequential(*layers, *([nn.ReLU6()] if activation else []))


class _SamePadded(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: an odd number of zeros has the larger part at the end."""

    def forward(self, features: Tensor) -> Tensor:
        padding = []
        for side, kernel, stride in zip(
            features.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(pad(features, padding))


def _scaled_channels(channels: int, width: float) -> int:
    """Rounds to a multiple of 8, never down by more than a tenth."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def from_checkpoint(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of the package efficientnet-lite-pytorch, without those of the classifier."""
    units = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    names = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_conv_head": "head.0", "_bn1": "head.1"}
    for block in range(sum(name.endswith("_project_conv.weight") for name in weights)):
        present = [unit for unit in units if f"_blocks.{block}.{unit}.weight" in weights]
        for place, unit in enumerate(present):
            for part, name in enumerate((unit, units[unit])):
                names[f"_blocks.{block}.{name}"] = f"blocks.{block}.layers.{place}.{part}"
    renamed = {}
    for name, weight in weights.items():
        module, _, parameter = name.rpartition(".")
        if module in names:
            renamed[f"{names[module]}.{parameter}"] = weight
    return renamed


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLite)
