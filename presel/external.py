"""Benchmarks that other programs run and score: lmms-eval in an environment of its own, VLMEvalKit by hand.

Scores are converted so that printing them in per cent gives the numbers that papers print: 0.791 for 79.1,
and 14.175 for an MME of 1417.5. Rel. is a mean of ratios and does not depend on that.
"""

import json
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field
from pydantic.dataclasses import dataclass as component

from presel.component import STRICT
from presel.errors import PreselError
from presel.summary import Scores


class ExternalBenchmarks(ABC):
    """Base of the programs that evaluate a model's folder."""

    @abstractmethod
    def check(self) -> None:
        """Makes sure that the program can be started, before anything is tuned.

        Raises:
            PreselError: If it cannot.
        """

    @abstractmethod
    def run(self, model: Path, folder: Path, log: Path) -> None:
        """Evaluates a model, unless that is for the user to do.

        Args:
            model: Folder of the merged model.
            folder: Where the program leaves its results.
            log: File for what it prints.

        Raises:
            PreselError: If it fails, or if the user is to run it and has not.
        """

    @abstractmethod
    def scores(self, folder: Path) -> Scores | None:
        """Reads the results, or None where there are none yet.

        Raises:
            PreselError: If a result lacks a column, or cannot be read.
        """


@component(frozen=True, kw_only=True, config=STRICT)
class LmmsColumn:
    """One column of the table.

    Attributes:
        task: lmms-eval's name of the benchmark.
        metric: Its name of the measure.
        scale: Factor from its number to ours.
    """

    task: str
    metric: str
    scale: Annotated[float, Field(gt=0)] = 1.0


@component(frozen=True, kw_only=True, config=STRICT)
class LmmsEval(ExternalBenchmarks):
    """lmms-eval, called as a program, because it cannot share our environment.

    Attributes:
        python: Interpreter of the environment that has lmms-eval, or None where it runs on another machine.
        model: lmms-eval's name of the model class.
        model_args: Further arguments for it.
        batch_size: Answers generated at once.
        columns: What to run, and which of its numbers to take, by the name of the column.
    """

    python: Path | None = field(compare=False)
    model: str = "llava_hf"
    model_args: dict[str, str] = field(compare=False)
    batch_size: Annotated[int, Field(gt=0)] = field(default=1, compare=False)
    columns: dict[str, LmmsColumn]

    def check(self) -> None:
        """Asks the interpreter for lmms-eval."""
        if self.python is None:
            return
        try:
            asked = subprocess.run(
                [str(self.python), "-c", "import lmms_eval"], capture_output=True, text=True
            )
        except OSError as error:
            raise PreselError(
                f"evaluation.python: {self.python} cannot be started ({error.strerror}); name the "
                "interpreter of an environment with lmms-eval"
            ) from error
        if asked.returncode:
            raise PreselError(
                f"evaluation.python: {self.python} has no lmms-eval ({_last_line(asked.stderr)}); install it "
                "there, or name another interpreter"
            )

    def command(self, model: Path, folder: Path) -> list[str]:
        """The command that evaluates a model's folder."""
        arguments = {"pretrained": str(model), **self.model_args}
        return [
            str(self.python or "python"),
            *("-m", "lmms_eval", "--model", self.model),
            *("--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())),
            *("--tasks", ",".join(dict.fromkeys(column.task for column in self.columns.values()))),
            *("--batch_size", str(self.batch_size), "--output_path", str(folder)),
        ]

    def run(self, model: Path, folder: Path, log: Path) -> None:
        """Runs lmms-eval, or says how to."""
        command = self.command(model, folder)
        if self.python is None:
            raise PreselError(
                f"lmms-eval is not run here (evaluation.python is null); run `{' '.join(command)}` where it "
                f"is, put what it leaves under {folder}, and run this command again"
            )
        with log.open("a") as output:
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
        if code:
            raise PreselError(
                f"lmms-eval ended with exit status {code} ({_last_line(log.read_text())}); its output is in "
                f"{log}; run this command again once that is mended"
            )

    def scores(self, folder: Path) -> Scores | None:
        """Reads every `*_results.json`, the newest last."""
        files = sorted(folder.rglob("*_results.json"), key=lambda file: file.stat().st_mtime)
        found: dict[str, Mapping[str, Any]] = {}
        for file in files:
            try:
                found |= json.loads(file.read_text())["results"]
            except (ValueError, KeyError, TypeError) as error:
                raise PreselError(
                    f"{file}: this is no result of lmms-eval ({error}); remove it or export it again"
                ) from error
        if not files:
            return None
        return {name: self._score(name, column, found, folder) for name, column in self.columns.items()}

    def _score(self, name: str, column: LmmsColumn, found: Mapping[str, Any], folder: Path) -> float:
        task = found.get(column.task, {})
        # lmms-eval names the filter after a comma.
        value = next((task[key] for key in task if key.partition(",")[0] == column.metric), None)
        if not isinstance(value, int | float):
            raise PreselError(
                f"{folder}: the results hold no number for {column.task}/{column.metric}, the column "
                f"'{name}'; evaluate it too, or leave it out of evaluation.columns"
            )
        return value * column.scale


@component(frozen=True, kw_only=True, config=STRICT)
class VlmEvalColumn:
    """One column of the table.

    Attributes:
        file: How the name of VLMEvalKit's file ends, as in `POPE_score.csv`.
        column: The column of that file.
        row: The value of the file's first column in the row to take; None where there is one row.
        scale: Factor from its number to ours.
    """

    file: str
    column: str
    row: str | None = None
    scale: Annotated[float, Field(gt=0)] = 1.0


@component(frozen=True, kw_only=True, config=STRICT)
class VlmEvalKit(ExternalBenchmarks):
    """VLMEvalKit, which the user runs; its CSV files are read.

    Attributes:
        columns: Which numbers to take, by the name of the column.
    """

    columns: dict[str, VlmEvalColumn]

    def check(self) -> None:
        """Nothing can be checked beforehand."""

    def run(self, model: Path, folder: Path, log: Path) -> None:
        """Says what to do."""
        raise PreselError(
            f"VLMEvalKit is not run from here; evaluate the model in {model} with it, put its files "
            f"({', '.join(dict.fromkeys(column.file for column in self.columns.values()))}) under {folder}, "
            "and run this command again"
        )

    def scores(self, folder: Path) -> Scores | None:
        """Reads the files, which may lie in folders of their own."""
        if not any(folder.rglob("*.csv")):
            return None
        return {name: self._score(name, column, folder) for name, column in self.columns.items()}

    def _score(self, name: str, column: VlmEvalColumn, folder: Path) -> float:
        files = [file for file in sorted(folder.rglob("*.csv")) if file.name.endswith(column.file)]
        if len(files) != 1:
            raise PreselError(
                f"{folder}: {len(files) or 'no'} files end in {column.file}, the column '{name}'; leave one, "
                "or take the column out of evaluation.columns"
            )
        table = pd.read_csv(files[0])
        if column.row is not None:
            table = table[table.iloc[:, 0].astype(str) == column.row]
        if column.column not in table or len(table) != 1:
            raise PreselError(
                f"{files[0]}: there is not one number in column '{column.column}'"
                + (f" of row '{column.row}'" if column.row else "")
                + f", for the column '{name}'; correct evaluation.columns"
            )
        return float(table[column.column].iloc[0]) * column.scale


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
