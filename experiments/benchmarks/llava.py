"""Models and data of LLaVA-1.5's shape, with random weights and made-up words.

The benchmarks are run by path, so this module is their neighbor and not part of a package.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from presel.data.llava import Record
from presel.data.prompts import IMAGE_TOKEN, Turn
from presel.models.assembly import llava_processor
from presel.models.hardware import device_for
from presel.models.lvlm import Lvlm
from presel.models.model_files import BUILTIN, locate

# Width, layers, heads and inner width of the vision tower and of the language model.
SHAPES = {
    "tiny": ((32, 2, 2, 64), (64, 2, 2, 128)),
    "cpu": ((128, 4, 4, 512), (384, 4, 6, 1024)),
    "7b": ((1024, 24, 16, 4096), (4096, 32, 32, 11008)),
}
_VOCABULARY = 32_064
_SIDE, _PATCH = 336, 14


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


def random_llava(folder: Path, shape: str) -> RandomLvlm:
    """A LLaVA with random weights and 576 image tokens.

    Args:
        folder: Receives its configuration and processor.
        shape: A key of `SHAPES`; `7b` is LLaVA-1.5-7B's, in bfloat16, and so is `tiny`, to try it out.
    """
    tokenizer = AutoTokenizer.from_pretrained(locate(f"{BUILTIN}digit_llava"), model_max_length=2048)
    (width, layers, heads, inner), (text_width, text_layers, text_heads, text_inner) = SHAPES[shape]
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
            vocab_size=_VOCABULARY,
            hidden_size=text_width,
            num_hidden_layers=text_layers,
            num_attention_heads=text_heads,
            intermediate_size=text_inner,
            max_position_embeddings=2048,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
    )
    dtype = "float32" if shape == "cpu" else "bfloat16"
    config.save_pretrained(folder)
    image_processor = CLIPImageProcessorPil(size={"height": _SIDE, "width": _SIDE}, do_center_crop=False)
    llava_processor(image_processor, tokenizer, _PATCH).save_pretrained(folder)
    return RandomLvlm(path=str(folder), template="vicuna_v1", max_length=2048, dtype=dtype)


def compile_layers(model: torch.nn.Module) -> None:
    """Compiles each layer of tower and language model: layers of a kind share what is compiled."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(dynamic=True)


def photographs(folder: Path, count: int) -> list[Path]:
    """Writes JPEGs of 640 × 480: a smooth picture with grain, which compresses as photographs do."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), np.int16)
        picture = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        files.append(folder / f"{number:05}.jpg")
        Image.fromarray(picture).save(files[-1], quality=90)
    return files


def conversations(files: list[Path], longest: int = 60) -> list[Record]:
    """One record a file: one to three turns, questions and answers of one to `longest` words."""
    rng = np.random.default_rng(1)
    words = ["the", "red", "circle", "lies", "left", "of", "seven", "what", "color", "is"]
    records = []
    for number, file in enumerate(files):
        turns: list[Turn] = []
        for turn in range(int(rng.integers(1, 4))):
            question, answer = (
                " ".join(rng.choice(words, size=int(rng.integers(1, longest + 1)))) for _ in range(2)
            )
            prefix = "" if turn else f"{IMAGE_TOKEN}\n"
            turns += [{"from": "human", "value": prefix + question}, {"from": "gpt", "value": answer}]
        records.append(Record(f"{number:05}", file.name, "all", tuple(turns)))
    return records
