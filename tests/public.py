"""Tiny models saved in the formats in which Vicuna, CLIP, LLaVA's projector and DINOv2 are published."""

from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

TEXT = [
    "USER: What is on the table? ASSISTANT: A bowl of apples.",
    "A chat between a curious user and an assistant.",
]


def save_public_models(folder: Path) -> None:
    """Writes a Vicuna, a CLIP, a projector between them and a DINOv2, all tiny, and a picture."""
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
    Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    ).save_pretrained(folder / "dinov2")
    BitImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        folder / "dinov2"
    )


def projector(vision: int, language: int) -> dict[str, torch.Tensor]:
    return {
        "model.mm_projector.0.weight": torch.randn(language, vision) / 6,
        "model.mm_projector.0.bias": torch.randn(language),
        "model.mm_projector.2.weight": torch.randn(language, language) / 7,
        "model.mm_projector.2.bias": torch.randn(language),
    }
