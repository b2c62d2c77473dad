"""What tests of providers that wait for others share: images asked about, and the jobs that are written."""

from pathlib import Path

import pytest

from presel.data.llava import LlavaFiles
from presel.errors import Paused
from presel.instructions.provider import InstructionProvider, InstructionRequest, RequestedFile
from presel.storage.files import sha256


def wanted(files: LlavaFiles, *numbers: int) -> list[InstructionRequest]:
    names = [f"{number:04}.png" for number in numbers]
    return [InstructionRequest(name[:4], name, "vqa", sha256(files.images / name)) for name in names]


def about_two(files: LlavaFiles) -> InstructionRequest:
    """A record with two images."""
    shown = [RequestedFile(name, sha256(files.images / name)) for name in ("0001.png", "0000.png")]
    return InstructionRequest("both", "0001.png", "vqa", "a digest of both", tuple(shown))


def paused(provider: InstructionProvider, images: list[InstructionRequest], files: LlavaFiles) -> str:
    """Asks for instructions, and gives what the pause says."""
    with pytest.raises(Paused) as told:
        provider.reveal(images, files)
    return str(told.value)


def jobs(answers: Path) -> list[Path]:
    """Folders of all jobs, oldest first."""
    found = answers.glob("*/*/job.json")
    return [file.parent for file in sorted(found, key=lambda file: file.stat().st_mtime_ns)]
