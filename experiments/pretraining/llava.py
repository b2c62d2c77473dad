"""Pretraining of the small LLaVA that ships as `presel/assets/digit_llava`, in five phases.

Command: `torchrun --nproc-per-node 2 -m experiments.pretraining.llava --out presel/assets/digit_llava`.

Each phase leaves a folder under `--work` and is skipped where that exists, so a phase that failed, or
whose settings changed, is rerun by deleting its folder and the later ones. All models share the tokenizer and
the eyes; the other phases lie in a folder named after `--out`.
"""

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from experiments.pretraining.captions import align_projector, assemble, learn_captions
from experiments.pretraining.common import (
    clip_image_processor,
    log,
    log_to,
    process_rank,
    scene_batches,
)
from experiments.pretraining.eyes import PATCH, learn_to_see
from experiments.pretraining.language import LanguageShape, learn_language
from experiments.pretraining.texts import build_tokenizer
from presel.models.assembly import llava_processor

_TOKENIZER_SCENES = 3000


def pretrain(shape: LanguageShape, work: Path, out: Path, seed: int) -> None:
    """Runs the phases that are still to do, and writes the finished model's folder."""
    tokenizer_folder, eyes = work / "tokenizer", work / "eyes"
    language, aligned, captions = (work / out.name / name for name in ("language", "aligned", "captions"))
    _phase(tokenizer_folder, lambda: _tokenizer(seed))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    _phase(eyes, lambda: learn_to_see(steps=1500, batch_size=64, learning_rate=5e-3, seed=seed))
    _phase(
        language,
        lambda: learn_language(shape, tokenizer, steps=4000, batch_size=16, learning_rate=2.5e-3, seed=seed),
    )

    def tie() -> LlavaForConditionalGeneration:
        torch.manual_seed(seed)
        tower = CLIPVisionModel.from_pretrained(eyes)
        model = assemble(tower, AutoModelForCausalLM.from_pretrained(language), tokenizer)
        align_projector(model, tokenizer, steps=150, batch_size=64, learning_rate=6e-3, seed=seed)
        return model

    _phase(aligned, tie)
    _phase(captions, lambda: _caption(aligned, captions, tokenizer, seed))
    if not process_rank():
        export(captions, tokenizer, out)


def export(folder: Path, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes weights in float16 together with tokenizer and image processor."""
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    model.half().save_pretrained(out)
    llava_processor(clip_image_processor(), tokenizer, PATCH).save_pretrained(out)


def _caption(
    start: Path, folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int
) -> LlavaForConditionalGeneration:
    model = LlavaForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
    model.model.vision_tower.requires_grad_(False)
    partial = folder.with_name(f"{folder.name}-partial")
    learn_captions(
        model,
        tokenizer,
        steps=1600,
        pictures=14,
        texts=12,
        learning_rate=2e-3,
        seed=seed,
        save=lambda: model.save_pretrained(partial),
    )
    return model


def _tokenizer(seed: int) -> PreTrainedTokenizerFast:
    return build_tokenizer(list(next(scene_batches(seed, _TOKENIZER_SCENES)).views()), seed)


def _phase(folder: Path, make: Callable[[], PreTrainedModel | PreTrainedTokenizerFast]) -> None:
    """Makes and saves what a folder holds, unless it is there; the folder appears only when complete."""
    if not folder.exists():
        log.info("phase %s", folder.name)
        made = make()
        if not process_rank():
            unfinished = folder.with_name(f"{folder.name}-unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            made.save_pretrained(unfinished)
            unfinished.rename(folder)
    if dist.is_initialized():
        dist.barrier()


def main() -> None:
    """Reads the command line; several processes under torchrun share each batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("outputs/pretraining/llava"), help="folder of the phases"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--family", default="llama", help="model type of the language half (%(default)s)")
    parser.add_argument("--width", type=int, default=160, help="size of its hidden states (%(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="its decoder layers (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    log_to(arguments.work / f"log-{process_rank()}.txt")
    shape = LanguageShape(arguments.family, arguments.width, arguments.layers)
    pretrain(shape, arguments.work, arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
