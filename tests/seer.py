"""A provider that asks a model called seer, on a server of `tests.generation_server`."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from presel.data.llava import LlavaFiles, TaskRule
from presel.instructions.chat_api import OpenAI
from presel.instructions.provider import InstructionRequest, ProviderResult
from presel.settings.options import config_folder
from tests.generation_server import Running


def prompts() -> Any:
    return instantiate(OmegaConf.load(config_folder() / "instructions/prompts/default.yaml"), _convert_="all")


def provider(server: Running, folder: Path, **changes: Any) -> OpenAI:
    """A provider that does not wait long."""
    settings: dict[str, Any] = {
        "model": "seer",
        "prompts": prompts(),
        "base_url": server.url,
        "key_variable": None,
        "answers": folder / "answers",
        "backoff_s": 0.01,
        "timeout_s": 30.0,
        "max_unanswered_share": 1.0,
    }
    return OpenAI(**(settings | changes))


def images(folder: Path, count: int, task: str = "vqa") -> list[InstructionRequest]:
    """Small images, each different."""
    (folder / "images").mkdir()
    wanted = []
    for number in range(count):
        file = folder / "images" / f"{number:05}.png"
        Image.fromarray(np.full((4, 4, 3), (*divmod(number, 256), 7), np.uint8)).save(file)
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        wanted.append(InstructionRequest(f"{number:05}", file.name, task, content))
    return wanted


def files(folder: Path) -> LlavaFiles:
    return LlavaFiles(folder / "none.json", folder / "images", TaskRule())


def reveal(
    server: Running, folder: Path, wanted: Sequence[InstructionRequest], **changes: Any
) -> ProviderResult:
    return provider(server, folder, **changes).reveal(wanted, files(folder))


def kept(folder: Path) -> list[dict[str, Any]]:
    """The lines of the answers file."""
    return [json.loads(line) for line in (folder / "answers/answers.jsonl").read_bytes().splitlines()]
