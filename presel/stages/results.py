"""Stages whose results have the same form: a table, or the scores of a model."""

from pathlib import Path

import pandas as pd

from presel.evaluation.scores import Scores
from presel.storage.files import read_json, write_json, write_table
from presel.storage.stage import Stage


class TableStage(Stage[pd.DataFrame]):
    """A stage whose result is the table `<name>.parquet`."""

    def write(self, folder: Path, table: pd.DataFrame) -> None:
        """Writes the table into the stage's folder."""
        write_table(folder / f"{self.name}.parquet", table)

    def load(self, folder: Path) -> pd.DataFrame:
        """Reads the table; its columns are described at the stage's class."""
        return pd.read_parquet(folder / f"{self.name}.parquet")


class ScoresStage(Stage[Scores]):
    """A stage whose result is the score of each benchmark, 0 to 1, in `scores.json`."""

    def write(self, folder: Path, scores: Scores) -> None:
        """Writes the scores into the stage's folder."""
        write_json(folder / "scores.json", scores)

    def load(self, folder: Path) -> Scores:
        """Reads the scores."""
        scores: Scores = read_json(folder / "scores.json")
        return scores
