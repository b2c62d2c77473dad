"""Benchmarks that other programs run and score: lmms-eval in an environment of its own, VLMEvalKit by hand.

Scores are converted so that printing them in per cent gives the numbers that papers print: 0.791 for 79.1,
and 14.175 for an MME of 1417.5. Rel. is a mean of ratios and does not depend on that.
"""

import csv
import json
import logging
import os
import re
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import field
from io import StringIO
from pathlib import Path
from typing import Annotated

from pydantic import Field

from presel.component import component
from presel.data.checks import shown
from presel.errors import PreselError
from presel.evaluation.scores import Scores

_log = logging.getLogger(__name__)

# Loads what a run would load, for lmms-eval looks for a model's libraries late and leaves some of them out.
_CHECK = """
import sys
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager

model, include_path, *tasks = sys.argv[1:]
get_model(model)
missing = sorted(set(tasks) - set(TaskManager(include_path=include_path or None).all_tasks))
if missing:
    sys.exit(f"no task {', '.join(missing)}")
"""

# By date and time; `submissions/mmbench_en_dev_results.json` and its like are a task's own.
_RESULTS = "[0-9]*_[0-9]*_results.json"

# What lmms-eval logs of a question that the model failed on.
_FAILURE = re.compile(r"Error (.*) in generating")


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
            PreselError: If a result lacks a column, cannot be read, or is no possible score.
        """


@component
class _Column:
    """How a program's number becomes a score; the attributes are described where a program names them."""

    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    maximum: Annotated[float, Field(gt=0, allow_inf_nan=False)] = field(default=1.0, compare=False)

    def score(self, value: object, name: str, file: Path, place: str) -> float:
        """The score that a number in a result file stands for.

        Text counts if it is a plain number. A percent sign is refused: what a number means is for `scale` to
        say.

        Args:
            value: What the file holds.
            name: The column's name.
            file: The file.
            place: Where in it.

        Raises:
            PreselError: If it is no number, or no possible score, as the NaN that a failed judge leaves.
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
        # Not true of NaN; rounding may raise a full score by a little.
        if not 0 <= score <= self.maximum * (1 + 1e-9):
            raise PreselError(
                f"{file}: {number} for {place}, the column '{name}', is no score, since {self.scale:g} times "
                f"that is not from 0 to {self.maximum:g}; delete the file and evaluate again, or correct "
                f"evaluation.columns.{name}.scale or .maximum"
            )
        return score


@component
class LmmsColumn(_Column):
    """One column of the table.

    Attributes:
        task: lmms-eval's name of the benchmark.
        metric: Its name of the measure; where it comes by several filters with one of them, as in
            `exact_match,strict-match`.
        scale: Factor from its number to ours.
        maximum: The highest possible score, after scaling; 1 for what is printed in per cent.
        key_variable: Environment variable with the key of the model that judges the answers, if one does.
            Without the key lmms-eval scores 0 or guesses; None where it finds one elsewhere.
    """

    task: str
    metric: str
    key_variable: str | None = field(default=None, compare=False)


@component
class LmmsEval(ExternalBenchmarks):
    """lmms-eval, called as a program, because it cannot share our environment.

    Attributes:
        python: Interpreter of the environment that has lmms-eval, or None where it runs on another machine.
        model: lmms-eval's name of the model class.
        model_args: Further arguments for it.
        gen_kwargs: How answers are generated, for all tasks: these go before a task's own settings.
        batch_size: Answers generated at once; `llava_hf` takes 1 alone.
        include_path: Folder with tasks of one's own, for columns that name them. Its files are not compared:
            a task that changes wants another name.
        columns: What to run, and which of its numbers to take, by the name of the column.
    """

    python: Path | None = field(compare=False)
    model: str = "llava_hf"
    model_args: dict[str, str] = field(compare=False)
    gen_kwargs: dict[str, bool | int | float | str] = field(default_factory=lambda: {"temperature": 0})
    batch_size: Annotated[int, Field(gt=0)] = field(default=1, compare=False)
    include_path: Path | None = field(default=None, compare=False)
    columns: Annotated[dict[str, LmmsColumn], Field(min_length=1)]

    @property
    def tasks(self) -> list[str]:
        """What lmms-eval is to run."""
        return list(dict.fromkeys(column.task for column in self.columns.values()))

    def check(self) -> None:
        """Asks the interpreter for lmms-eval, the model class and the tasks, and the environment for keys."""
        if self.python is None:
            return
        for name, column in self.columns.items():
            key = column.key_variable
            if key is not None and not os.environ.get(key):
                raise PreselError(
                    f"evaluation.columns.{name}: a model judges the answers to {column.task}, and {key} is "
                    f"not set; set it, or leave the column out by ~evaluation.columns.{name}"
                )
        include_path = str(self.include_path or "")
        try:
            asked = subprocess.run(
                [str(self.python), "-c", _CHECK, self.model, include_path, *self.tasks],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise PreselError(
                f"evaluation.python: {self.python} cannot be started ({error.strerror}); name the "
                "interpreter of an environment with lmms-eval"
            ) from error
        if asked.returncode:
            raise PreselError(
                f"evaluation.python: {self.python} cannot evaluate ({_reason(asked.stderr)}); install "
                "'lmms_eval[video-legacy]' there, or correct evaluation.model, .include_path or .columns"
            )

    def command(self, model: Path, folder: Path) -> list[str]:
        """The command that evaluates a model's folder."""
        arguments = _listed({"pretrained": model, **self.model_args})
        return [
            str(self.python or "python"),
            *("-m", "lmms_eval", "--model", self.model),
            *("--model_args", arguments),
            *("--tasks", ",".join(self.tasks)),
            *(() if self.include_path is None else ("--include_path", str(self.include_path))),
            *(("--gen_kwargs", _listed(self.gen_kwargs)) if self.gen_kwargs else ()),
            # Below DEBUG, an evaluation that fails ends with exit status 0.
            *("--batch_size", str(self.batch_size), "--verbosity", "DEBUG", "--output_path", str(folder)),
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
            before = output.tell()
            code = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, env=_environment()
            ).returncode
        printed = log.read_bytes()[before:].decode(errors="replace")
        if code:
            raise PreselError(
                f"lmms-eval ended with exit status {code} ({_reason(printed)}); its output is in "
                f"{log}; run this command again once that is mended"
            )
        if failures := _FAILURE.findall(printed):
            _log.info(
                f"  lmms-eval counts {len(failures)} questions as answered wrongly that the model failed on "
                f"({failures[-1]}); see {log}"
            )

    def scores(self, folder: Path) -> Scores | None:
        """Reads every file of results; of a task's, the newest counts."""
        files = sorted(_files(folder, _RESULTS), key=lambda file: (file.name, file))
        if not files:
            return None
        # The file beside what it says of a task.
        found = {task: (file, values) for file in files for task, values in _lmms_results(file).items()}
        return {
            name: self._score(name, column, *found.get(column.task, (folder, None)))
            for name, column in self.columns.items()
        }

    def _score(self, name: str, column: LmmsColumn, file: Path, values: object) -> float:
        measured = values if isinstance(values, dict) else {}
        # lmms-eval names the filter after a comma.
        keys = [key for key in measured if key.partition(",")[0] == column.metric]
        if column.metric in measured:
            keys = [column.metric]
        place = f"{column.task}/{column.metric}"
        if len(keys) > 1:
            raise PreselError(
                f"{file}: {place}, the column '{name}', comes by several filters ({' and '.join(keys)}); "
                f"leave one in the file, or evaluate with 'evaluation.columns.{name}.metric=\"{keys[0]}\"'"
            )
        return column.score(measured[keys[0]] if keys else None, name, file, place)


@component
class VlmEvalColumn(_Column):
    """One column of the table.

    Attributes:
        file: How the name of VLMEvalKit's file ends, as in `POPE_score.csv`.
        column: The column of that file.
        row: The value of the file's first column in the row to take; None where there is one row.
        scale: Factor from its number to ours.
        maximum: The highest possible score, after scaling; 1 for what is printed in per cent.
    """

    file: Annotated[str, Field(pattern=r"\.csv$")]
    column: str
    row: str | None = None


@component
class VlmEvalKit(ExternalBenchmarks):
    """VLMEvalKit, which the user runs; its CSV files are read.

    Attributes:
        columns: Which numbers to take, by the name of the column.
    """

    columns: Annotated[dict[str, VlmEvalColumn], Field(min_length=1)]

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
        if not _files(folder, "*.csv"):
            return None
        return {name: self._score(name, column, folder) for name, column in self.columns.items()}

    def _score(self, name: str, column: VlmEvalColumn, folder: Path) -> float:
        # VLMEvalKit links each file a second time, one folder up.
        files = list({file.resolve() for file in _files(folder, "*.csv") if file.name.endswith(column.file)})
        if len(files) != 1:
            raise PreselError(
                f"{folder}: {len(files) or 'no'} files end in {column.file}, the column '{name}'; leave one, "
                "or take the column out of evaluation.columns"
            )
        header, *rows = _csv_rows(files[0])
        place = f"column '{column.column}'"
        if column.row is not None:
            rows = [row for row in rows if row[0] == column.row]
            place += f" of row '{column.row}'"
        if header.count(column.column) != 1 or len(rows) != 1:
            raise PreselError(
                f"{files[0]}: there is not one number in {place}, for the column '{name}' ({len(rows)} rows "
                f"with {', '.join(header)}); correct evaluation.columns.{name}, or the file"
            )
        return column.score(rows[0][header.index(column.column)], name, files[0], place)


def _files(folder: Path, pattern: str) -> list[Path]:
    """The files of that name at or under a folder; opening a pipe would wait for ever."""
    return [file for file in folder.rglob(pattern) if file.is_file()]


def _number(value: object) -> float | None:
    """What a file gives as a number, or None."""
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _lmms_results(file: Path) -> dict[str, object]:
    """What a file of lmms-eval's says of each task."""
    try:
        results = json.loads(_text(file))["results"]
        if not isinstance(results, dict):
            raise TypeError("its 'results' are no object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PreselError(
            f"{file}: this is no result of lmms-eval ({error}); remove it or export it again"
        ) from error
    return results


def _csv_rows(file: Path) -> list[list[str]]:
    """The rows of a CSV file, its header first."""
    # Other columns may hold answers of any length.
    csv.field_size_limit(sys.maxsize)
    try:
        rows = [row for row in csv.reader(StringIO(_text(file)), strict=True) if row]
    except csv.Error as error:
        raise PreselError(f"{file}: this is no whole CSV file ({error}); export it again") from error
    if len({len(row) for row in rows}) != 1:
        why = "its rows differ in length" if rows else "it is empty"
        raise PreselError(f"{file}: this is no whole CSV file ({why}); export it again")
    return rows


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PreselError(f"{file}: the file is not UTF-8; convert it or export it again") from error


def _listed(arguments: Mapping[str, object]) -> str:
    """Arguments as lmms-eval takes them."""
    return ",".join(f"{name}={value}" for name, value in arguments.items())


def _environment() -> dict[str, str]:
    """Our own, with the hub's token under its older name: lmms-eval prints HF_TOKEN into its log."""
    environment = dict(os.environ)
    if token := environment.pop("HF_TOKEN", None):
        environment["HUGGING_FACE_HUB_TOKEN"] = token
    return environment


def _reason(text: str) -> str:
    """The last line that names an exception, since progress bars may follow it, or else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return (named or lines or ["no output"])[-1]
