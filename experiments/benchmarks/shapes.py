"""Models of the shapes of LLaVA-1.5 and Qwen2.5-VL, with random weights.

The benchmarks are run by path, so this module is their neighbor and not part of a package.
"""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2VLImageProcessorPil,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from presel.data.prompts import IMAGE_TOKEN
from presel.models.assembly import llava_processor
from presel.models.hardware import device_for
from presel.models.lvlm import Lvlm
from presel.models.model_files import BUILTIN, locate

# Width, layers, heads and inner width of the vision tower and of the language model.
LLAVA = {
    "tiny": ((32, 2, 2, 64), (64, 2, 2, 128)),
    "cpu": ((128, 4, 4, 512), (384, 4, 6, 1024)),
    "7b": ((1024, 24, 16, 4096), (4096, 32, 32, 11008)),
}
QWEN = {
    "qwen_tiny": ((32, 2, 2, 64), (64, 2, 2, 128)),
    "qwen_3b": ((1280, 32, 16, 3420), (2048, 36, 16, 11008)),
}
SHAPES = (*LLAVA, *QWEN)
_LLAVA_VOCABULARY, _QWEN_VOCABULARY = 32_064, 151_936
_SIDE, _PATCH = 336, 14
# Qwen's markers of images by the names of their ids in its configuration, and those of turns.
_QWEN_MARKERS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}
_QWEN_TURNS = ("<|im_start|>", "<|im_end|>")
_QWEN_TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% for part in message.content -%}
{%- if part.type == "image" %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif -%}
{%- endfor %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""


class RandomLvlm(Lvlm):
    """A model without a file of weights: every loading draws the same ones, on the device that computes.

    Writing the 13 GB of a 7B model, and reading them once for every measurement, would take minutes.
    """

    def load_model(self, adapter: Path | None = None) -> PreTrainedModel:
        """The model, in eval mode; it takes no adapter."""
        assert adapter is None
        config = AutoConfig.from_pretrained(self.path)
        with torch.random.fork_rng(), torch.device(device_for("auto")):
            torch.manual_seed(0)
            model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, self.dtype))
        return model.eval()


def random_model(folder: Path, shape: str) -> RandomLvlm:
    """A model with random weights.

    Args:
        folder: Receives its configuration and processor.
        shape: One of `SHAPES`: `7b` is LLaVA-1.5-7B's and `qwen_3b` Qwen2.5-VL-3B's, in bfloat16; so are
            `tiny` and `qwen_tiny`, to try the others out.
    """
    return _qwen(folder, *QWEN[shape]) if shape in QWEN else _llava(folder, shape)


def _llava(folder: Path, shape: str) -> RandomLvlm:
    """A LLaVA with 576 image tokens."""
    tokenizer = AutoTokenizer.from_pretrained(locate(f"{BUILTIN}digit_llava"), model_max_length=2048)
    (width, layers, heads, inner), (text_width, text_layers, text_heads, text_inner) = LLAVA[shape]
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=inner,
            image_size=_SIDE,
            patch_size=_PATCH,
        ),
        text_config=LlamaConfig(
            vocab_size=_LLAVA_VOCABULARY,
            hidden_size=text_width,
            num_hidden_layers=text_layers,
            num_attention_heads=text_heads,
            intermediate_size=text_inner,
            max_position_embeddings=2048,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
    )
    config.save_pretrained(folder)
    image_processor = CLIPImageProcessorPil(size={"height": _SIDE, "width": _SIDE}, do_center_crop=False)
    llava_processor(image_processor, tokenizer, _PATCH).save_pretrained(folder)
    dtype = "float32" if shape == "cpu" else "bfloat16"
    return RandomLvlm(path=str(folder), template="vicuna_v1", max_length=2048, dtype=dtype)


def _qwen(folder: Path, vision: tuple[int, ...], text: tuple[int, ...]) -> RandomLvlm:
    """A Qwen2.5-VL, whose images take a token for every 28 by 28 pixels."""
    tokenizer = _qwen_tokenizer()
    (width, layers, heads, inner), (text_width, text_layers, text_heads, text_inner) = vision, text
    head = text_width // text_heads
    config = Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": width,
            "depth": layers,
            "num_heads": heads,
            "intermediate_size": inner,
            "out_hidden_size": text_width,
            "fullatt_block_indexes": list(range(7, layers, 8)),
        },
        text_config={
            "vocab_size": _QWEN_VOCABULARY,
            "hidden_size": text_width,
            "num_hidden_layers": text_layers,
            "num_attention_heads": text_heads,
            "num_key_value_heads": 2,
            "intermediate_size": text_inner,
            # Pairs of a head's numbers that turn with time, row and column.
            "rope_parameters": {"rope_type": "default", "mrope_section": [head // 8, *2 * [head * 3 // 16]]},
        },
        tie_word_embeddings=True,
        **{name: tokenizer.convert_tokens_to_ids(marker) for name, marker in _QWEN_MARKERS.items()},
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    return RandomLvlm(
        path=str(folder),
        template="processor",
        max_length=2048,
        projector="visual.merger",
        pad_to_square=False,
        dtype="bfloat16",
    )


def _qwen_tokenizer() -> PreTrainedTokenizerFast:
    """The built-in model's words with Qwen's markers and a chat template like Qwen's."""
    words = AutoTokenizer.from_pretrained(locate(f"{BUILTIN}digit_llava"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words.backend_tokenizer, pad_token=words.pad_token)
    tokenizer.add_special_tokens({"additional_special_tokens": [*_QWEN_TURNS, *_QWEN_MARKERS.values()]})
    tokenizer.eos_token = _QWEN_TURNS[1]
    tokenizer.chat_template = _QWEN_TEMPLATE
    return tokenizer


def compile_layers(model: torch.nn.Module) -> None:
    """Compiles each layer of tower and language model: layers of a kind share what is compiled."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(dynamic=True)
