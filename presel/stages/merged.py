"""Stage `merged`: the tuned model as one folder that plain transformers loads."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from presel.stages.tuning import TuningStage
from presel.storage.stage import Stage
from presel.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class MergedStage(Stage[Path]):
    """The adapter merged into the weights, with a processor that formats prompts as in tuning, in `model/`.

    Attributes:
        tuned: The adapter and its base model.
    """

    name: ClassVar[str] = "merged"
    version: ClassVar[int] = 3

    tuned: TuningStage

    def compute(self, store: Store, folder: Path) -> None:
        """Merges and saves; a repeated attempt writes the same files again."""
        from presel.models.conversations import ConversationEncoder

        lvlm = self.tuned.lvlm
        encoder = ConversationEncoder(lvlm)
        model = lvlm.load_model(store.load(self.tuned))
        # Other programs stop generating there; the base model's settings may name another token.
        model.generation_config.eos_token_id = encoder.end_token
        model.save_pretrained(folder / "model")
        lvlm.save_processor(folder / "model")

    def load(self, folder: Path) -> Path:
        """The model's folder."""
        return folder / "model"
