"""Base of benchmarks that another program runs and scores, and how its numbers become scores.

Scores are shares of the highest possible one, since means over benchmarks and differences of them would
otherwise be those of the benchmark with the largest numbers: MME's 1417.5 of 2,000 points are 0.709.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated

from pydantic import Field

from presel.component import component
from presel.data.checks import shown
from presel.errors import PreselError
from presel.evaluation.scores import Scores


class ExternalBenchmarks(ABC):
    """Base class of external evaluation programs, which read a merged model from its folder."""

    def for_family(self, family: str) -> "ExternalBenchmarks":
        """The program as it evaluates models of a family; by default the same for all.

        Args:
            family: transformers' name of the family, a configuration's `model_type`.

        Raises:
            PreselError: If the program is not known to read such models.
        """
        return self

    @abstractmethod
    def check(self) -> None:
        """Checks that the program can be started; called before anything is tuned.

        Raises:
            PreselError: If it cannot.
        """

    @abstractmethod
    def run(self, model: Path, folder: Path, log: Path) -> None:
        """Evaluates the merged model in the folder `model`, or tells the user to do so.

        Results go into `folder`, the program's output into the file `log`.

        Raises:
            PreselError: If the program fails, or must be run by the user first.
        """

    def hidden_failure(self, log: Path) -> str | None:
        """What the program printed into `log` of failures that its results do not tell; None if nothing."""
        return None

    @abstractmethod
    def scores(self, folder: Path) -> Scores | None:
        """Reads the results: score by column; None if there are none yet.

        Raises:
            PreselError: If a column is missing, a file cannot be read, or a score is out of range.
        """


@component
class Column:
    """How a program's number becomes a score.

    Attributes:
        scale: Factor from the program's number to the score, a share of the highest possible one.
    """

    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0

    def score(self, value: object, name: str, file: Path, place: str) -> float:
        """Converts a value of a result file to a score.

        Args:
            value: The value; text must be a plain number, without a percent sign, since `scale` defines the
                unit.
            name: The column's name.
            file: The result file.
            place: The value's position in the file, for error messages.

        Raises:
            PreselError: If the value is not a number, or is out of range, as the NaN that a failed judge
                leaves.
        """
        number = _number(value)
        if number is None:
            found = "nothing" if value is None else shown(value)
            raise PreselError(
                f"{file}: the results hold no number for {place}, the column '{name}' (found: {found}); "
                "correct the file, or delete it and evaluate again, or leave the column out by "
                f"~evaluation.columns.{name}"
            )
        score = number * self.scale
        # False for NaN; rounding may raise a full score slightly.
        if not 0 <= score <= 1 + 1e-9:
            raise PreselError(
                f"{file}: {number} for {place}, the column '{name}', is no score, since {self.scale:g} times "
                "that is not from 0 to 1; delete the file and evaluate again, or correct "
                f"evaluation.columns.{name}.scale"
            )
        return score


def result_files(folder: Path, pattern: str) -> list[Path]:
    """Regular files under a folder whose names match a pattern; opening a pipe would block."""
    return [file for file in folder.rglob(pattern) if file.is_file()]


def read_text(file: Path) -> str:
    """Reads a UTF-8 file; raises a `PreselError` if it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PreselError(f"{file}: the file is not UTF-8; convert it or export it again") from error


def _number(value: object) -> float | None:
    """Converts a value to a number; None if it is not one."""
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
