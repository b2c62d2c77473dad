"""`presel assemble`: a LLaVA from small parts in the formats that are published."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPModel, LlamaForCausalLM

from presel.data.prompts import IMAGE_TOKEN
from presel.errors import PreselError
from presel.models.assembly import assemble
from presel.models.conversations import ConversationEncoder, Example
from presel.models.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from presel.models.lvlm import Lvlm
from presel.models.model_files import model_fingerprint
from tests.helpers import Program
from tests.public import projector


@torch.no_grad()
def test_the_parts_compute_what_they_computed_apart(
    public: Path, tmp_path: Path, in_process: Program
) -> None:
    in_process.succeeds(
        *("assemble", "--language", str(public / "vicuna"), "--vision", str(public / "clip")),
        *("--projector", str(public / "mm_projector.bin"), "--out", "base", "--dtype", "float32"),
    )
    assert (tmp_path / "base" / "model.safetensors").exists()
    lvlm = Lvlm(path=str(tmp_path / "base"), template="vicuna_v1")
    encoder, model = ConversationEncoder(lvlm), lvlm.load_model()
    turns: Any = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "apples"}]
    batch = encoder.batch([Example([public / "picture.png"], turns)])
    labels = batch["labels"]
    assert encoder.tokenizer.decode(labels[labels >= 0]).strip() == "apples</s>"
    logits = model(**batch).logits

    weights = torch.load(public / "mm_projector.bin")
    tower = CLIPModel.from_pretrained(public / "clip").vision_model
    seen = tower(batch["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    first = torch.nn.functional.linear(
        seen, *(weights[f"model.mm_projector.0.{kind}"] for kind in ("weight", "bias"))
    )
    second = torch.nn.functional.linear(
        torch.nn.functional.gelu(first),
        *(weights[f"model.mm_projector.2.{kind}"] for kind in ("weight", "bias")),
    )
    language = LlamaForCausalLM.from_pretrained(public / "vicuna")
    ids = batch["input_ids"]
    image = ids == encoder.image_token
    assert image.sum() == 4
    embedded = language.get_input_embeddings()(ids.masked_fill(image, 0))
    embedded[image] = second[0]
    alone = language(inputs_embeds=embedded).logits
    torch.testing.assert_close(logits[..., : alone.shape[-1]], alone, atol=1e-5, rtol=1e-5)
    assert encoder.tokenizer.pad_token == "<unk>"
    assert encoder.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) == alone.shape[-1]


@torch.no_grad()
def test_a_tower_of_convolutions(public: Path, tmp_path: Path) -> None:
    """EfficientNet-Lite has no [CLS] token: every position of the tower becomes an image token."""
    torch.manual_seed(0)
    shape = EfficientNetLiteConfig(image_size=64, width=0.25, depth=0.5, head_size=16, hidden_size=144)
    tower = EfficientNetLite(shape).eval()
    tower.save_pretrained(tmp_path / "tower")
    processor = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    processor.save_pretrained(tmp_path / "tower")
    torch.save(projector(shape.hidden_size, 48), tmp_path / "mm.bin")
    parts = str(public / "vicuna"), str(tmp_path / "tower"), tmp_path / "mm.bin"
    assemble(*parts, tmp_path / "base", "float32")
    lvlm = Lvlm(path=str(tmp_path / "base"))
    encoder, model = ConversationEncoder(lvlm), lvlm.load_model()
    pixels = encoder.images([public / "picture.png"])[0]["pixel_values"]
    states = tower(pixels).last_hidden_state
    assert states.shape == (1, 4, shape.hidden_size)
    seen = model.model.get_image_features(pixel_values=pixels).pooler_output[0]
    torch.testing.assert_close(seen, model.model.multi_modal_projector(states)[0])
    turns: Any = [{"from": "human", "value": "<image>\nWhat is it?"}]
    assert encoder.tokens(turns).ids.count(encoder.image_token) == 4


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


def _without_second(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in weights.items() if ".2." not in name}


@pytest.mark.parametrize(
    ("saved", "sentence"),
    [
        (projector(24, 48), r"linear_1.weight has shape \(48, 24\), where a tower of width 32"),
        (projector(32, 40), "a language model of width 48 need"),
        (_without_second(projector(32, 48)), "no weights and biases of mm_projector.0 and mm_projector.2"),
        ([1, 2], "no weights and biases"),
        (Evil(), "this is no file of weights only"),
    ],
)
def test_a_projector_that_does_not_fit(
    public: Path, tmp_path: Path, saved: Any, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if isinstance(saved, Evil):
        (tmp_path / "mm.bin").write_bytes(pickle.dumps(saved, protocol=2))
    else:
        torch.save(saved, tmp_path / "mm.bin")
    with pytest.raises(PreselError, match=sentence):
        assemble(str(public / "vicuna"), str(public / "clip"), tmp_path / "mm.bin", tmp_path / "base")
    assert "must not run" not in capsys.readouterr().out
    assert not (tmp_path / "base").exists()


def test_the_same_parts_in_another_folder_make_the_same_model(public: Path, tmp_path: Path) -> None:
    shutil.copytree(public, tmp_path / "moved")
    bases = []
    for parts in (public, tmp_path / "moved"):
        base = tmp_path / f"base{len(bases)}"
        assemble(str(parts / "vicuna"), str(parts / "clip"), parts / "mm_projector.bin", base)
        assert not [file for file in base.glob("*.json") if str(parts) in file.read_text()]
        bases.append(model_fingerprint(str(base), None))
    assert bases[0] == bases[1]


def test_what_is_missing_or_there_already_is_named(public: Path, tmp_path: Path) -> None:
    good = public / "mm_projector.bin"
    with pytest.raises(PreselError, match="there is such a folder already"):
        assemble(str(public / "vicuna"), str(public / "clip"), good, tmp_path)
    with pytest.raises(PreselError, match=r"none\.bin: there is no such file"):
        assemble(str(public / "vicuna"), str(public / "clip"), tmp_path / "none.bin", tmp_path / "base")
    with pytest.raises(PreselError, match=r"nowhere cannot be loaded"):
        assemble(str(tmp_path / "nowhere"), str(public / "clip"), good, tmp_path / "base")
    with pytest.raises(PreselError, match=r"dinov2: a tower of the kind dinov2 cannot be assembled"):
        assemble(str(public / "vicuna"), str(public / "dinov2"), good, tmp_path / "base")
