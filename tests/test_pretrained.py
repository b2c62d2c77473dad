"""Models from outside: nothing but settings and tensors is read from a folder."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    ConvNextImageProcessorPil,
    ResNetConfig,
    ResNetModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from presel.errors import PreselError
from presel.models.clip import Clip
from presel.models.encoder import Encoder
from presel.models.lvlm import Lvlm
from presel.models.model_files import locate

OWN_CODE = "needs custom Python code"


class Runs:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """Copies a built-in model, and puts code beside it that leaves `ran` behind."""

    def made(name: str) -> Path:
        shutil.copytree(locate(f"builtin:{name}"), tmp_path / name)
        (tmp_path / name / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
        return tmp_path / name

    return made


def change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize(
    ("name", "component"), [("digit_dinov2", Encoder), ("digit_llava", Lvlm), ("digit_clip", Clip)]
)
def test_a_model_that_needs_code_of_its_own_is_refused_before_any_work(
    name: str, component: Callable[..., Any], copy: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copy(name)
    change(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
    with pytest.raises(PreselError, match=f"{name} cannot be loaded: it {OWN_CODE}"):
        component(path=str(folder)).check()
    change(folder / "config.json", auto_map={"AutoConfig": "some/repository--own.Config"})
    with pytest.raises(PreselError, match=OWN_CODE):
        component(path=str(folder)).check()
    assert not (tmp_path / "ran").exists()


def test_a_processor_with_remote_code_is_refused(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("digit_dinov2")
    own = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Processor"}}
    change(folder / "preprocessor_config.json", **own)
    with pytest.raises(PreselError, match=OWN_CODE):
        Encoder(path=str(folder)).check()
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_model_that_transformers_implements_is_left_alone(
    copy: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copy("digit_llava")
    change(folder / "config.json", auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"})
    model = Lvlm(path=str(folder))
    model.check()
    assert type(model.load_model()).__name__ == "LlavaForConditionalGeneration"
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_read_as_tensors_only(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("digit_llava")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(
        pickle.dumps({"lm_head.weight": Runs(tmp_path / "ran")}, protocol=2)
    )
    with pytest.raises(PreselError, match="a pickle that contains more than tensors"):
        Lvlm(path=str(folder)).load_model()
    assert not (tmp_path / "ran").exists()


def test_a_model_without_the_features_that_are_asked_for_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = SiglipVisionConfig(**sizes, image_size=32, patch_size=8)
    SiglipVisionModel(settings).save_pretrained(tmp_path / "siglip")
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "siglip")
    layers = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    ResNetModel(ResNetConfig(**layers)).save_pretrained(tmp_path / "resnet")
    ConvNextImageProcessorPil(size={"shortest_edge": 224}).save_pretrained(tmp_path / "resnet")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")

    def features(name: str, pooling: Any) -> NDArray[np.float16]:
        encoder = Encoder(path=str(tmp_path / name), pooling=pooling)
        return next(encoder.encode([[tmp_path / "a.png"]], workers=0))

    with pytest.raises(PreselError, match=r"siglip has no class token; set encoder\.pooling=mean"):
        features("siglip", "cls")
    assert features("siglip", "mean").shape == (1, 16)
    with pytest.raises(PreselError, match=r"no sequence of tokens \(its shape is \(1, 16, "):
        features("resnet", "mean")


@pytest.mark.parametrize("content", ["{", "[]", "{}", "\ufeff", "[" * 100_000, "7"])
def test_a_damaged_configuration_is_named(content: str, copy: Callable[[str], Path]) -> None:
    folder = copy("digit_dinov2")
    (folder / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(PreselError, match=r"digit_dinov2/config\.json: "):
        Encoder(path=str(folder)).check()


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("config.json", {"num_channels": "three"}, "cannot be loaded: .*num_channels"),
        ("config.json", {"num_attention_heads": 7}, "digit_dinov2 "),
        ("preprocessor_config.json", {"image_mean": ["a", "b", "c"]}, "fails on an image: .*float"),
        ("preprocessor_config.json", {"image_std": [float("nan")] * 3}, "NaN or infinite"),
    ],
)
def test_settings_that_do_not_fit_are_reported_before_an_image_is_read(
    file: str, settings: dict[str, Any], message: str, copy: Callable[[str], Path]
) -> None:
    folder = copy("digit_dinov2")
    change(folder / file, **settings)
    with pytest.raises(PreselError, match=message):
        next(Encoder(path=str(folder)).encode([[Path("nowhere.png")]], workers=0))
