"""`presel assemble`: a LLaVA from small parts in the formats that are published."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from presel.data.prompts import IMAGE_TOKEN
from presel.errors import PreselError
from presel.models.assembly import assemble
from presel.models.conversations import ConversationEncoder, Example
from presel.models.lvlm import Lvlm
from tests.conftest import Program

TEXT = [
    "USER: What is on the table? ASSISTANT: A bowl of apples.",
    "A chat between a curious user and an assistant.",
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Vicuna, a CLIP, and a projector between them, all tiny."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(folder / "vicuna")
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).save_pretrained(folder / "vicuna")
    tower = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
    )
    words = CLIPTextConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=99
    )
    CLIPModel(CLIPConfig(text_config=words.to_dict(), vision_config=tower.to_dict())).save_pretrained(
        folder / "clip"
    )
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        folder / "clip"
    )
    torch.save(projector(32, 48), folder / "mm_projector.bin")
    Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 50).convert("RGB").save(folder / "picture.png")
    return folder


def projector(vision: int, language: int) -> dict[str, torch.Tensor]:
    return {
        "model.mm_projector.0.weight": torch.randn(language, vision) / 6,
        "model.mm_projector.0.bias": torch.randn(language),
        "model.mm_projector.2.weight": torch.randn(language, language) / 7,
        "model.mm_projector.2.bias": torch.randn(language),
    }


@torch.no_grad()
def test_the_parts_compute_what_they_computed_apart(parts: Path, tmp_path: Path, program: Program) -> None:
    made = program(
        *("assemble", "--language", str(parts / "vicuna"), "--vision", str(parts / "clip")),
        *("--projector", str(parts / "mm_projector.bin"), "--out", "base", "--dtype", "float32"),
    )
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "base" / "model.safetensors").exists()
    lvlm = Lvlm(path=str(tmp_path / "base"), template="vicuna_v1")
    encoder, model = ConversationEncoder(lvlm), lvlm.load_model()
    turns: Any = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "apples"}]
    batch = encoder.batch([Example(parts / "picture.png", turns)])
    labels = batch.pop("labels")
    assert encoder.tokenizer.decode(labels[labels >= 0]).strip() == "apples</s>"
    logits = model(**batch).logits

    weights = torch.load(parts / "mm_projector.bin")
    tower = CLIPModel.from_pretrained(parts / "clip").vision_model
    seen = tower(batch["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    first = torch.nn.functional.linear(
        seen, *(weights[f"model.mm_projector.0.{kind}"] for kind in ("weight", "bias"))
    )
    second = torch.nn.functional.linear(
        torch.nn.functional.gelu(first),
        *(weights[f"model.mm_projector.2.{kind}"] for kind in ("weight", "bias")),
    )
    language = LlamaForCausalLM.from_pretrained(parts / "vicuna")
    ids = batch["input_ids"]
    image = ids == encoder.image_token
    assert image.sum() == 4
    embedded = language.get_input_embeddings()(ids.masked_fill(image, 0))
    embedded[image] = second[0]
    alone = language(inputs_embeds=embedded).logits
    torch.testing.assert_close(logits[..., : alone.shape[-1]], alone, atol=1e-5, rtol=1e-5)
    assert encoder.tokenizer.pad_token == "<unk>"
    assert encoder.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) == alone.shape[-1]


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
        (Evil(), "this is no file of weights alone"),
    ],
)
def test_a_projector_that_does_not_fit(
    parts: Path, tmp_path: Path, saved: Any, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if isinstance(saved, Evil):
        (tmp_path / "mm.bin").write_bytes(pickle.dumps(saved, protocol=2))
    else:
        torch.save(saved, tmp_path / "mm.bin")
    with pytest.raises(PreselError, match=sentence):
        assemble(str(parts / "vicuna"), str(parts / "clip"), tmp_path / "mm.bin", tmp_path / "base")
    assert "must not run" not in capsys.readouterr().out
    assert not (tmp_path / "base").exists()


def test_what_is_missing_or_there_already_is_named(parts: Path, tmp_path: Path) -> None:
    good = parts / "mm_projector.bin"
    with pytest.raises(PreselError, match="there is such a folder already"):
        assemble(str(parts / "vicuna"), str(parts / "clip"), good, tmp_path)
    with pytest.raises(PreselError, match=r"none\.bin: there is no such file"):
        assemble(str(parts / "vicuna"), str(parts / "clip"), tmp_path / "none.bin", tmp_path / "base")
    with pytest.raises(PreselError, match=r"a part cannot be loaded: .*nowhere"):
        assemble(str(tmp_path / "nowhere"), str(parts / "clip"), good, tmp_path / "base")
