"""Stage `scenes`: draws the built-in digit scenes."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from presel.digits.dataset import write_benchmarks, write_pool
from presel.store import Stage, Store


@dataclass(frozen=True)
class ScenesStage(Stage[Path]):
    """Digit scenes as a LLaVA-format `annotations.json` beside a folder `images`."""

    name: ClassVar[str] = "scenes"

    split: Literal["pool", "benchmarks"]
    size: int
    seed: int

    @property
    def label(self) -> str:
        """Says which of the two is drawn."""
        return f"{self.name} ({self.split})"

    def compute(self, store: Store, folder: Path) -> None:
        """Draws the scenes; a second attempt writes the same files again."""
        write = write_pool if self.split == "pool" else write_benchmarks
        write(folder, self.size, self.seed)

    def load(self, folder: Path) -> Path:
        """The folder itself."""
        return folder
