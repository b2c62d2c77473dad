"""Trains one step with other programs on exports of one run, and compares the loss with that of transformers.

Command: `python experiments/exports/train_step.py`. Makes a pool of records with one image, with two and with
none, and runs presel on it up to the merged model. Each program is newly installed from the package registry,
in an environment of its own, and trains that model on an export, with all records in one batch. The loss that
it prints must be that of plain transformers on the pool's records. Ends in one line of JSON for each program.
`--programs trl` leaves the others out; `--folder` keeps the environments, exports and logs.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import presel

_COLORS = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (40, 40, 200), "gray": (120, 120, 120)}
_KINDS = 3


class Program(NamedTuple):
    """What differs between programs.

    Attributes:
        form: The export's format.
        command: The command line.
        before: What the program's template puts before the first turn.
        answer: What it puts before an answer.
        everything: Whether the loss is over all tokens, and not over the answer's alone.
    """

    form: str
    command: str
    before: str
    answer: str
    everything: bool = False


# By the name of the package.
_PROGRAMS = {
    "trl": Program(
        form="trl",
        command="trl sft --model_name_or_path {model} --dataset_name {export} --dtype float32 --bf16 false "
        "--use_cpu true",
        before="",
        answer=" ASSISTANT: ",
        everything=True,
    ),
    "llamafactory": Program(
        form="llama_factory",
        command="llamafactory-cli train --model_name_or_path {model} --dataset_dir {export} "
        "--dataset selection --template llava --stage sft --do_train true --finetuning_type full "
        "--use_cpu true",
        before="A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions.",
        answer=" ASSISTANT:",
    ),
    "ms-swift": Program(
        form="ms_swift",
        command="swift sft --model {model} --dataset {export}/train.json --model_type llava1_5_hf "
        "--template llava1_5_hf --tuner_type full --torch_dtype float32 --gradient_accumulation_steps 1",
        before="<s>",
        answer="\nASSISTANT:",
    ),
}
_ONE_STEP = (
    f"--max_steps 1 --per_device_train_batch_size {_KINDS * len(_COLORS)} --logging_steps 1 "
    "--save_strategy no --report_to none --output_dir {tuned}"
)
# Programs print four digits.
_TOLERANCE = 0.01
_LOSS = re.compile(r"'loss': '?([^',}]+)")


def call(command: Sequence[str | Path], log: Path) -> str:
    """Runs a command without the Hub, with its output in a file.

    Returns:
        The output.

    Raises:
        RuntimeError: If the command fails.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(log.parent / "cache")}
    with log.open("w") as file:
        result = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False)
    if result.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed, see {log}")
    return log.read_text()


def make_pool(folder: Path) -> None:
    """Draws a picture of each color, and writes records about one of them, about two, and about none."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    records = []
    for name, other in zip(_COLORS, reversed(_COLORS), strict=True):
        pixels = np.array(_COLORS[name]) + random.integers(-20, 20, (48, 48, 3))  # (height, width, 3)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{name}.png")
        files = [f"{name}.png", f"{other}.png"]
        for question, answer, image in (
            ("<image>\nWhat color is this?", name, {"image": files[0]}),
            ("<image>\n<image>\nAre these of the same color?", "No.", {"image": files}),
            (f"Is {name} a color?", "Yes.", {}),
        ):
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            records.append({"id": str(len(records)), "task": "color", "conversations": turns, **image})
    (folder / "pool.json").write_text(json.dumps(records))


def run_presel(folder: Path) -> Path:
    """Chooses every record of the pool, and tunes the built-in model on them.

    Returns:
        The folder of the merged model.
    """
    pool = folder / "pool"
    make_pool(pool)
    settings = (
        f"pool=llava_json pool.annotations={pool}/pool.json pool.images={pool}/images pool.text_only=keep "
        f"strategy=random budget={2 * len(_COLORS)} executor.workers=0 until=merged "
        f"paths.store={folder}/store hydra.run.dir={folder}/run"
    )
    call([sys.executable, "-m", "presel", "run", *settings.split()], folder / "presel.log")
    return presel.load_run(folder / "run").paths["merged"]


def new_environment(folder: Path, *packages: str) -> Path:
    """Installs packages in an environment of their own.

    Returns:
        The folder of its executables.
    """
    log = folder.with_suffix(".install.log")
    call([sys.executable, "-m", "venv", folder], log)
    call([folder / "bin" / "python", "-m", "pip", "install", *packages], log)
    return folder / "bin"


def install(name: str, folder: Path) -> Path:
    """Installs a program with the build of PyTorch that presel runs on.

    Returns:
        The folder of the environment's executables.
    """
    environment = folder / name
    build = f"torch=={version('torch')}"
    executables = new_environment(environment, name, "pillow", build)
    if build.endswith("+cpu"):
        # PyPI's builds of both fail at import without CUDA. LLaMA-Factory imports the second for sound.
        pip = [executables / "python", "-m", "pip"]
        call([*pip, "uninstall", "--yes", "torchvision", "torchaudio"], folder / f"{name}.uninstall.log")
        (packages,) = environment.glob("lib/python*/site-packages")
        (packages / "torchaudio.py").touch()
    return executables


def loss_by_hand(program: Program, folder: Path, model: Path) -> float:
    """The mean loss of the pool's records, each by itself, in a program's template."""
    network = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(model, backend="pil")
    losses = []
    for record in json.loads((folder / "pool" / "pool.json").read_text()):
        question, answer = (turn["value"] for turn in record["conversations"])
        text = f"{program.before}USER: {question}{program.answer}{answer}</s>"
        files = np.atleast_1d(record.get("image", []))
        images = [Image.open(folder / "pool" / "images" / file) for file in files] or None
        inputs = processor(text=text, images=images, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            logits = network(**inputs).logits[0, :-1]  # (tokens - 1, vocabulary)
        loss = torch.nn.functional.cross_entropy(logits, inputs["input_ids"][0, 1:], reduction="none")
        answer_tokens = processor.tokenizer(f"{answer}</s>", add_special_tokens=False)["input_ids"]
        losses.append(loss if program.everything else loss[-len(answer_tokens) :])
    return torch.cat(losses).mean().item()


def train(name: str, model: Path, folder: Path) -> dict[str, str]:
    """Installs a program, exports the run for it, and trains one step.

    Returns:
        The versions, the loss that the program printed, and that by hand.

    Raises:
        RuntimeError: If anything fails, or the loss is another than by hand.
    """
    executables = install(name, folder)
    program = _PROGRAMS[name]
    export = folder / f"{name}.export"
    arguments = f"export {folder}/run --format {program.form} --out {export}".split()
    call([sys.executable, "-m", "presel", *arguments], folder / f"{name}.export.log")

    log = folder / f"{name}.train.log"
    paths = {"model": model, "export": export, "tuned": folder / f"{name}.tuned"}
    executable, *arguments = [word.format(**paths) for word in f"{program.command} {_ONE_STEP}".split()]
    loss = _LOSS.search(call([executables / executable, *arguments], log))
    expected = loss_by_hand(program, folder, model)
    if not loss or abs(float(loss[1]) - expected) > _TOLERANCE:
        raise RuntimeError(f"{name} did not print the loss {expected:.4f}, see {log}")
    packages = (name, "transformers", "torch")
    show = f"from importlib.metadata import version; print(*map(version, {packages}))"
    versions = call([executables / "python", "-c", show], folder / f"{name}.versions.log").split()
    return dict(zip(packages, versions, strict=True)) | {"loss": loss[1], "by hand": f"{expected:.4f}"}


def read_command_line(description: str, programs: Collection[str], folder: str) -> tuple[list[str], Path]:
    """The programs to try, and a new folder for all that is written."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--programs", nargs="+", choices=programs, default=list(programs))
    parser.add_argument("--folder", type=Path, default=Path(folder), help="a new folder")
    options = parser.parse_args()
    new = options.folder.resolve()
    new.mkdir(parents=True)
    return options.programs, new


def print_result(name: str, try_program: Callable[[], Mapping[str, Any]]) -> None:
    """Prints what came of a program as a line of JSON, also if it failed."""
    try:
        result = try_program()
    except RuntimeError as error:
        result = {"failure": str(error)}
    print(json.dumps({"program": name, **result}), flush=True)


def main() -> None:
    """Prints what came of each program, failures too."""
    names, folder = read_command_line(
        "Train one step with other programs on exports of one run.", _PROGRAMS, "outputs/exports"
    )
    model = run_presel(folder)
    for name in names:
        print_result(name, partial(train, name, model, folder))


if __name__ == "__main__":
    main()
