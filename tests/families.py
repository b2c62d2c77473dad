"""Tiny random models of the families that people tune, saved with processors as these are published."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
)

from presel.models.lvlm import Lvlm
from tests.tokenizers_of_models import byte_level

# A chat in which every turn is closed by a token, as those of Qwen, InternVL, SmolVLM and LLaVA-OneVision.
_CHAT = """\
{% for message in messages %}START{{ message['role'] }}
{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE\
{% else %}{{ part['text'] }}{% endif %}{% endfor %}END
{% endfor %}{% if add_generation_prompt %}STARTassistant
{% endif %}"""
# As LLaVA-OneVision's: images first, and a space behind the speaker that the generation prompt lacks.
_IMAGES_FIRST = """\
{% for message in messages %}START{{ message['role'] }} \
{% for part in message['content'] if part['type'] == 'image' %}IMAGE{% endfor %}\
{% for part in message['content'] if part['type'] == 'text' %}{{ '\n' + part['text'] }}{% endfor %}END\
{% endfor %}{% if add_generation_prompt %}STARTassistant
{% endif %}"""
_TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = _TEXT | {"image_size": 28, "patch_size": 14}


class Family(NamedTuple):
    """A family of models.

    Attributes:
        processor: Its processor's class, and settings saved with it.
        images: Its image processor.
        tokens: Special tokens by their names in the tokenizer's configuration.
        chat: Its chat template's tokens: start and end of a turn, and an image.
        model: Makes the model of a tokenizer.
        names: Names of its parts, arguments of `Lvlm`.
        one_pass: Whether one forward pass gives both losses.
        template: Its chat template, without the tokens.
    """

    processor: dict[str, Any]
    images: Any
    tokens: dict[str, str]
    chat: tuple[str, str, str]
    model: Callable[[PreTrainedTokenizerFast], PreTrainedModel]
    names: dict[str, Any]
    one_pass: bool = True
    template: str = _CHAT


def save_family(family: Family, folder: Path) -> Lvlm:
    """Writes a model's folder as it is published: weights, tokenizer, image processor, chat template."""
    start, end, image = family.chat
    tokens = dict.fromkeys([start.strip(), end, *family.tokens.values(), "<|pad|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(list(tokens)),
        eos_token=end,
        pad_token="<|pad|>",
        extra_special_tokens=family.tokens,
    )
    tokenizer.save_pretrained(folder)
    family.images.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(family.processor))
    chat = family.template.replace("START", start).replace("END", end).replace("IMAGE", image)
    (folder / "chat_template.jinja").write_text(chat)
    torch.manual_seed(0)
    model = family.model(tokenizer)
    # As they are drawn, all tokens would attend to all others alike.
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and family.names.get("language_model", "language_model") in name:
            weight.data *= 8
        # Gemma's projector, without which it would not see.
        elif weight.ndim > 1 and not weight.any():
            weight.data.normal_(std=0.2)
    model.save_pretrained(folder)
    return Lvlm(path=str(folder), template="processor", pad_to_square=False, max_length=4096, **family.names)


def _ids(tokenizer: PreTrainedTokenizerFast, **tokens: str) -> dict[str, Any]:
    numbers = {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    return numbers


def _text(tokenizer: PreTrainedTokenizerFast, kind: str, **more: Any) -> dict[str, Any]:
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return {
        "model_type": kind,
        "vocab_size": len(tokenizer),
        "num_key_value_heads": 2,
        **_TEXT,
        **ends,
        **more,
    }


_QWEN = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
_QWEN_WRAPPED = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN_IMAGES = {"patch_size": 14, "size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 12}}


def _qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return _ids(
        tokenizer,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )


def _qwen25(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    rope = {"rope_type": "default", "type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    config = Qwen2_5_VLConfig(
        text_config=_text(tokenizer, "qwen2_5_vl_text", rope_parameters=rope),
        vision_config={
            **{"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "num_heads": 2},
            **{"patch_size": 14, "fullatt_block_indexes": [1], "window_size": 56},
        },
        **_qwen_ids(tokenizer),
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _qwen3(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4, "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=_text(tokenizer, "qwen3_vl_text", rope_parameters=rope, head_dim=16),
        vision_config={
            **{"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "num_heads": 2},
            **{"patch_size": 14, "deepstack_visual_indexes": [0], "num_position_embeddings": 64},
        },
        **_qwen_ids(tokenizer),
    )
    return Qwen3VLForConditionalGeneration(config)


def _internvl(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = InternVLConfig(
        text_config=_text(tokenizer, "qwen2"),
        vision_config={
            "model_type": "internvl_vision",
            **_TEXT,
            "image_size": [28, 28],
            "patch_size": [14, 14],
        },
        image_seq_length=1,
        **_ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
    )
    return InternVLForConditionalGeneration(config)


def _smolvlm(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = SmolVLMConfig(
        text_config=_text(tokenizer, "llama"),
        vision_config={"model_type": "smolvlm_vision", **_VISION},
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        **_ids(tokenizer, image_token_id="<image>"),
    )
    return SmolVLMForConditionalGeneration(config)


def _gemma3(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = Gemma3Config(
        text_config=_text(tokenizer, "gemma3_text", head_dim=16, sliding_window=8),
        vision_config={"model_type": "siglip_vision_model", **_VISION},
        mm_tokens_per_image=4,
        **_ids(
            tokenizer,
            image_token_id="<image_soft_token>",
            boi_token_index="<start_of_image>",
            eoi_token_index="<end_of_image>",
        ),
    )
    return Gemma3ForConditionalGeneration(config)


def _llava_next(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = LlavaNextConfig(
        text_config=_text(tokenizer, "llama"),
        vision_config={"model_type": "clip_vision_model", **_VISION},
        image_grid_pinpoints=_GRIDS,
        **_ids(tokenizer, image_token_index="<image>"),
    )
    return LlavaNextForConditionalGeneration(config)


def _llava_onevision(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = LlavaOnevisionConfig(
        text_config=_text(tokenizer, "qwen2"),
        vision_config={"model_type": "siglip_vision_model", **_VISION, "vision_use_head": False},
        image_grid_pinpoints=_GRIDS,
        vision_aspect_ratio="anyres_max_9",
        **_ids(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )
    return LlavaOnevisionForConditionalGeneration(config)


_GRIDS = [[28, 56], [56, 28], [56, 56]]
_QWEN_CHAT = ("<|im_start|>", "<|im_end|>", _QWEN_WRAPPED)
FAMILIES = {
    "qwen2_5_vl": Family(
        {"processor_class": "Qwen2_5_VLProcessor"},
        Qwen2VLImageProcessorPil(**_QWEN_IMAGES),
        {**_QWEN, "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"},
        _QWEN_CHAT,
        _qwen25,
        {"projector": "visual.merger"},
    ),
    "qwen3_vl": Family(
        {"processor_class": "Qwen3VLProcessor"},
        Qwen2VLImageProcessorPil(**_QWEN_IMAGES),
        {**_QWEN, "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"},
        _QWEN_CHAT,
        _qwen3,
        {"projector": ["visual.merger", "visual.deepstack_merger_list"]},
    ),
    "internvl": Family(
        {"processor_class": "InternVLProcessor", "image_seq_length": 1},
        GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, min_patches=1, max_patches=4),
        {
            **{"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"},
            **{"start_image_token": "<img>", "end_image_token": "</img>"},
        },
        ("<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>\n"),
        _internvl,
        {},
    ),
    "smolvlm": Family(
        {"processor_class": "SmolVLMProcessor", "image_seq_len": 1},
        SmolVLMImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}),
        {
            **{"image_token": "<image>", "fake_image_token": "<fake_token_around_image>"},
            **{"global_image_token": "<global-img>", "row": "<row_1_col_1>"},
        },
        ("<|im_start|>", "<end_of_utterance>", "<image>"),
        _smolvlm,
        {"language_model": "text_model", "projector": "connector"},
    ),
    "gemma3": Family(
        {"processor_class": "Gemma3Processor", "image_seq_length": 4},
        Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
        {
            **{"image_token": "<image_soft_token>", "boi_token": "<start_of_image>"},
            **{"eoi_token": "<end_of_image>"},
        },
        ("<start_of_turn>", "<end_of_turn>", "<start_of_image>"),
        _gemma3,
        {},
        one_pass=False,
    ),
    "llava_next": Family(
        {
            **{"processor_class": "LlavaNextProcessor", "patch_size": 14, "num_additional_image_tokens": 1},
            **{"vision_feature_select_strategy": "default", "image_token": "<image>"},
        },
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=_GRIDS
        ),
        {"image_token": "<image>"},
        ("[INST]", "</s>", "<image>\n"),
        _llava_next,
        {},
    ),
    "llava_onevision": Family(
        {
            **{"processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 4},
            **{"vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"},
        },
        LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=_GRIDS),
        {"image_token": "<image>", "video_token": "<video>"},
        ("<|im_start|>", "<|im_end|>", "<image>"),
        _llava_onevision,
        {},
        template=_IMAGES_FIRST,
    ),
}
