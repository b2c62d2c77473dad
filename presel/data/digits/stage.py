"""Stage `scenes`: draws the built-in digit scenes."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from presel.data.digits.dataset import write_benchmarks, write_pool
from presel.data.digits.narrow import NARROW_TASKS
from presel.data.digits.tasks import TASKS
from presel.storage.stage import Stage
from presel.storage.store import Store

DigitSplit: TypeAlias = Literal["pool", "narrow_pool", "benchmarks"]


@dataclass(frozen=True, kw_only=True)
class ScenesStage(Stage[Path]):
    """Digit scenes as a LLaVA-format `annotations.json` beside a folder `images`."""

    name: ClassVar[str] = "scenes"

    split: DigitSplit
    size: int
    seed: int

    @property
    def label(self) -> str:
        """The stage and the split."""
        return f"{self.name} ({self.split})"

    def compute(self, store: Store, folder: Path) -> None:
        """Draws the scenes; deterministic, so that a repeated attempt overwrites the same files."""
        if self.split == "benchmarks":
            write_benchmarks(folder, self.size, self.seed)
        else:
            tasks = NARROW_TASKS if self.split == "narrow_pool" else TASKS
            write_pool(folder, self.size, self.seed, tasks)

    def load(self, folder: Path) -> Path:
        """The folder itself."""
        return folder
