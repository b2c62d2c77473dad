"""Assembles the model before visual instruction tuning from the parts that LLaVA publishes.

LLaVA-1.5 starts from a language model, a CLIP image tower, and a projector pretrained on captions (Liu et
al., 2024). transformers loads the resulting folder as `LlavaForConditionalGeneration`.
"""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from presel.data.prompts import IMAGE_TOKEN
from presel.errors import PreselError
from presel.models.pretrained import load_pretrained, load_weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

_PAD_TOKEN = "<pad>"
# Layer of each kind of tower whose output is taken, and whether its first token is dropped ("default"):
# CLIP's second to last without [CLS], as in LLaVA.
_FEATURES = {"clip_vision_model": (-2, "default"), "efficientnet_lite": (-1, "full")}
# LLaVA's names of the projector's two layers, and those of transformers.
_LAYERS = {"0": "linear_1", "2": "linear_2"}


def assemble(language: str, vision: str, projector: Path, out: Path, dtype: str = "bfloat16") -> None:
    """Writes a LLaVA folder: weights as safetensors, tokenizer with an image token, image processor.

    Args:
        language: Folder or hub name of a causal language model with its tokenizer.
        vision: Folder or hub name of a CLIP or its image tower, or of an `EfficientNetLite`.
        projector: LLaVA's `mm_projector.bin`: two layers with a GELU between, saved by PyTorch.
        out: The folder to create.
        dtype: Precision of the saved weights.

    Raises:
        PreselError: If the folder exists, a part cannot be read, or shapes do not match.
    """
    import torch
    from transformers import (
        AutoImageProcessor,
        AutoModelForCausalLM,
        AutoTokenizer,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    if out.exists():
        raise PreselError(f"{out}: there is such a folder already; name another by --out, or delete it")
    layers = _read_projector(projector)
    precision = getattr(torch, dtype)
    tokenizer = load_pretrained(AutoTokenizer, language)
    body = load_weights(AutoModelForCausalLM, language, dtype=precision)
    tower = _load_tower(vision, precision)
    image_processor = load_pretrained(AutoImageProcessor, vision, backend="pil")
    _check_shapes(projector, layers, tower.config.hidden_size, body.config.hidden_size)
    _add_tokens(tokenizer, body)
    forget_folders(tower, body)
    side, patch = tower.config.image_size, tower.config.patch_size
    layer, strategy = _FEATURES[tower.config.model_type]
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=body.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(side // patch) ** 2,
        projector_hidden_act="gelu",
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=body.config.tie_word_embeddings,
    )
    # On the meta device weights take no memory; the loaded parts replace them.
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.language_model = body.model
    model.lm_head = body.lm_head
    model.model.multi_modal_projector.load_state_dict(
        {name: weight.to(precision) for name, weight in layers.items()}, assign=True
    )
    model.to(precision)
    model.generation_config = body.generation_config
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    unfinished = out.with_name(f"{out.name}.unfinished")
    model.save_pretrained(unfinished)
    llava_processor(image_processor, tokenizer, patch, strategy).save_pretrained(unfinished)
    unfinished.rename(out)


def forget_folders(*parts: "PreTrainedModel") -> None:
    """Removes from the parts of a model where they were loaded from.

    Saved, it would be part of the model's key, and so differ where the parts lie elsewhere.
    """
    for part in parts:
        part.config.name_or_path = ""


def llava_processor(
    image_processor: Any, tokenizer: "PreTrainedTokenizerBase", patch: int, strategy: str = "default"
) -> "ProcessorMixin":
    """The processor of a LLaVA.

    Args:
        image_processor: That of the tower.
        tokenizer: The language model's, with an image token.
        patch: Side of a patch in pixels.
        strategy: `default` for a tower with a [CLS] token, which is dropped, or `full`.
    """
    from transformers import LlavaProcessor

    for found_by in ("is_local", "local_files_only"):
        # Saved, how the tokenizer was found would be part of the model's key.
        tokenizer.init_kwargs.pop(found_by, None)
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(strategy == "default"),
        image_token=IMAGE_TOKEN,
    )


def _load_tower(name: str, precision: Any) -> "PreTrainedModel":
    from transformers import AutoConfig, AutoModel, CLIPVisionModel

    kind = load_pretrained(AutoConfig, name).model_type
    # Of a whole CLIP, its image tower.
    loader = CLIPVisionModel if kind in ("clip", "clip_vision_model") else AutoModel
    tower: PreTrainedModel = load_weights(loader, name, dtype=precision)
    if tower.config.model_type not in _FEATURES:
        raise PreselError(
            f"{name}: a tower of the kind {kind} cannot be assembled; name a CLIP or an EfficientNet-Lite"
        )
    return tower


def _read_projector(file: Path) -> dict[str, "Tensor"]:
    """The projector's weights under transformers' names, read without running code in the pickle."""
    import torch

    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise PreselError(f"{file}: there is no such file; name LLaVA's mm_projector.bin") from None
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise PreselError(
            f"{file}: this is no file of weights only ({str(error).splitlines()[0]}); take LLaVA's own "
            "mm_projector.bin"
        ) from error
    found: dict[str, Tensor] = {}
    for name, weight in saved.items() if isinstance(saved, Mapping) else ():
        layer, _, kind = str(name).rpartition("mm_projector.")[2].partition(".")
        if layer in _LAYERS and kind in ("weight", "bias"):
            found[f"{_LAYERS[layer]}.{kind}"] = weight
    if len(found) != 2 * len(_LAYERS):
        raise PreselError(
            f"{file}: it has no weights and biases of mm_projector.0 and mm_projector.2, the two-layer "
            "projector of LLaVA-1.5; take the one pretrained as mlp2x_gelu"
        )
    return found


def _check_shapes(file: Path, layers: Mapping[str, "Tensor"], vision: int, language: int) -> None:
    wanted = {"linear_1.weight": (language, vision), "linear_2.weight": (language, language)}
    for name, shape in wanted.items():
        if tuple(layers[name].shape) != shape:
            raise PreselError(
                f"{file}: {name} has shape {tuple(layers[name].shape)}, where a tower of width {vision} and "
                f"a language model of width {language} need {shape}; take the projector that was pretrained "
                "with these two"
            )


def _add_tokens(tokenizer: "PreTrainedTokenizerBase", body: "PreTrainedModel") -> None:
    """Adds an image token and, if missing, a padding token to the tokenizer and the model's embeddings."""
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    if tokenizer.pad_token is None:
        # LLaVA pads Vicuna with its unknown token.
        tokenizer.add_special_tokens({"pad_token": tokenizer.unk_token or _PAD_TOKEN})
    size = body.get_input_embeddings().num_embeddings
    if len(tokenizer) > size:
        body.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        # transformers draws the new rows; the mean of the others is the same each time.
        for layer in (body.get_input_embeddings(), body.get_output_embeddings()):
            layer.weight.data[size:] = layer.weight.data[:size].mean(dim=0)
    body.config.pad_token_id = tokenizer.pad_token_id
