"""Benchmarks by lmms-eval, called as a program in a separate environment."""

import ctypes
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from presel.component import component
from presel.errors import PreselError
from presel.evaluation.external import Column, ExternalBenchmarks, read_text, result_files
from presel.evaluation.scores import Scores
from presel.storage.stage import fields_identity

# Imports what a run would: lmms-eval imports a model's libraries late, and does not depend on all of them.
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

# Families of models, by transformers' name, that a class of lmms-eval 0.7.3 reads from our folders. It tells
# mixtures of experts (of qwen3_vl) and all of glm4v by the folder's name, which ours does not say.
MODEL_CLASSES = {
    "llava_hf": ("llava", "llava_next", "llava_onevision"),
    "qwen2_vl": ("qwen2_vl",),
    "qwen2_5_vl": ("qwen2_5_vl",),
    "qwen3_vl": ("qwen3_vl", "qwen3_5"),
    "internvl_hf": ("internvl",),
    "gemma3": ("gemma3",),
}

# Named by date and time; files like `submissions/mmbench_en_dev_results.json` belong to single tasks.
_RESULTS = "[0-9]*_[0-9]*_results.json"

# Logged by lmms-eval for each question on which the model raised an exception, whose text may have several
# lines.
_FAILURE = re.compile(r"Error ((?:(?!Error ).)*?) in generating", re.DOTALL)

# Arguments of lmms-eval's models that say where they run.
_PLACES = ("device", "device_map")

# From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1

# Where lmms-eval finds a judge of OpenAI's protocol.
_KEY, _URL, _URL_END = "OPENAI_API_KEY", "OPENAI_API_URL", "/chat/completions"


@component
class LmmsColumn(Column):
    """A column of the score table, see also `Column`.

    Attributes:
        task: lmms-eval's name of the benchmark.
        metric: lmms-eval's name of the metric; if it has several filters, with one of them, as in
            `exact_match,strict-match`.
        key_variable: Environment variable with the API key of the model that judges the answers, without
            which lmms-eval scores 0 or guesses; None if no key is needed.
        whole_url: Whether the task takes OPENAI_API_URL for the judge's whole address, which ends in
            /chat/completions; others take it for the part before that.
    """

    task: str
    metric: str
    key_variable: str | None = field(default=None, compare=False)
    whole_url: bool = field(default=False, compare=False)


@component
class LmmsEval(ExternalBenchmarks):
    """lmms-eval, called as a program because its dependencies conflict with ours.

    Attributes:
        python: Interpreter of the environment that has lmms-eval; None if it runs on another machine.
        model: lmms-eval's name of the model class; None for the one that is known to read the model's family.
        model_args: Further arguments of the model class.
        gen_kwargs: Generation settings for all tasks, which override a task's own.
        batch_size: Answers generated at once; `llava_hf` supports 1 only.
        max_failures: Questions that the model may fail on, by an exception; lmms-eval counts them as wrong.
        include_path: Folder with additional tasks. Changes of its files do not change the result's key: give
            a changed task another name.
        columns: The tasks to run and the metrics to read, by the name of the column.
    """

    python: Path | None = field(compare=False)
    model: str | None = None
    model_args: dict[str, str]
    gen_kwargs: dict[str, bool | int | float | str] = field(default_factory=lambda: {"temperature": 0})
    batch_size: Annotated[int, Field(gt=0)] = field(default=1, compare=False)
    max_failures: Annotated[int, Field(ge=0)] = field(default=0, compare=False)
    include_path: Path | None = field(default=None, compare=False)
    columns: Annotated[dict[str, LmmsColumn], Field(min_length=1)]

    def identity(self) -> dict[str, Any]:
        """The fields, without the model's arguments that say where it runs."""
        model_args = {name: value for name, value in self.model_args.items() if name not in _PLACES}
        return fields_identity(self) | {"model_args": model_args}

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks to run."""
        return list(dict.fromkeys(column.task for column in self.columns.values()))

    def for_family(self, family: str) -> "LmmsEval":
        """With the model class for a family of models.

        Raises:
            PreselError: If none is known, or `model` is one that is known to read others.
        """
        known = next((name for name, families in MODEL_CLASSES.items() if family in families), None)
        if self.model is None and known is None:
            raise PreselError(
                f"evaluation.model: no class of lmms-eval is known to read models of type {family}, as the "
                "one of lvlm.path is; name one by evaluation.model=NAME"
            )
        if self.model in MODEL_CLASSES and family not in MODEL_CLASSES[self.model]:
            raise PreselError(
                f"evaluation.model={self.model}: this class of lmms-eval reads models of type "
                f"{' and '.join(MODEL_CLASSES[self.model])}, and the one of lvlm.path is {family}; "
                + (f"set evaluation.model={known}" if known else "name a class that reads that")
            )
        return replace(self, model=self.model or known)

    def check(self) -> None:
        """Checks that lmms-eval, the model class, the tasks and the API keys are available."""
        if self.python is None:
            return
        for name, column in self.columns.items():
            _check_judge(name, column)
        include_path = str(self.include_path or "")
        try:
            asked = subprocess.run(
                [str(self.python), "-c", _CHECK, self._model_class, include_path, *self.tasks],
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
        """The command line that evaluates a model."""
        arguments = _listed({"pretrained": model, **self.model_args})
        return [
            str(self.python or "python"),
            *("-m", "lmms_eval", "--model", self._model_class),
            *("--model_args", arguments),
            *("--tasks", ",".join(self.tasks)),
            *(() if self.include_path is None else ("--include_path", str(self.include_path))),
            *(("--gen_kwargs", _listed(self.gen_kwargs)) if self.gen_kwargs else ()),
            # Below DEBUG, lmms-eval exits with status 0 even if it fails.
            *("--batch_size", str(self.batch_size), "--verbosity", "DEBUG", "--output_path", str(folder)),
        ]

    def run(self, model: Path, folder: Path, log: Path) -> None:
        """Runs lmms-eval, or tells the user the command."""
        command = self.command(model, folder)
        if self.python is None:
            raise PreselError(
                f"lmms-eval is not run here (evaluation.python is null); run `{shlex.join(command)}` where "
                f"it is installed, put its results under {folder}, and run this command again"
            )
        with log.open("w") as output:
            done = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        if done.returncode:
            raise PreselError(
                f"lmms-eval ended with exit status {done.returncode} ({_reason(_printed(log))}); its output "
                f"is in {log}; solve that and run this command again"
            )

    def hidden_failure(self, log: Path) -> str | None:
        """Questions that the model failed on; where lmms-eval ran elsewhere, there is no log."""
        failures = _FAILURE.findall(_printed(log)) if log.exists() else []
        if len(failures) <= self.max_failures:
            return None
        last = " ".join(failures[-1].split())[:200]
        return (
            f"{log}: the model failed on {len(failures)} questions ({last}), which lmms-eval counts as wrong "
            f"answers; solve that, delete {log.parent} and run this command again, or accept them by "
            f"evaluation.max_failures={len(failures)}"
        )

    def scores(self, folder: Path) -> Scores | None:
        """Reads all result files; a later file overrides an earlier one for the same task."""
        files = sorted(result_files(folder, _RESULTS), key=lambda file: (file.name, file))
        if not files:
            return None
        # Task -> result file and the task's metrics.
        found = {task: (file, values) for file in files for task, values in _lmms_results(file).items()}
        return {
            name: self._score(name, column, *found.get(column.task, (folder, None)))
            for name, column in self.columns.items()
        }

    @property
    def _model_class(self) -> str:
        assert self.model is not None, "for_family decides it"
        return self.model

    def _score(self, name: str, column: LmmsColumn, file: Path, values: object) -> float:
        measured = values if isinstance(values, dict) else {}
        # lmms-eval appends the filter after a comma.
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


def _check_judge(name: str, column: LmmsColumn) -> None:
    """Raises a `PreselError` if lmms-eval would not reach the model that judges a column's answers."""
    key, without = column.key_variable, f"leave the column out by ~evaluation.columns.{name}"
    if key is not None and not os.environ.get(key):
        raise PreselError(
            f"evaluation.columns.{name}: a model judges the answers to {column.task}, and {key} is not set; "
            f"set it (to any word where the judge needs none), or {without}"
        )
    url = os.environ.get(_URL)
    if key == _KEY and url and url.rstrip("/").endswith(_URL_END) != column.whole_url:
        form = f"with {_URL_END} at its end" if column.whole_url else f"without {_URL_END} at its end"
        raise PreselError(
            f"evaluation.columns.{name}: {column.task} takes {_URL} {form}, otherwise lmms-eval would score "
            f"0 or guess; correct it, or {without} and evaluate it in a run of its own"
        )


def _end_with_parent() -> None:
    """Has Linux end this process when the one that started it ends, even by SIGKILL, and free the GPU."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _lmms_results(file: Path) -> dict[str, object]:
    """Reads a result file of lmms-eval: metrics by task."""
    try:
        results = json.loads(read_text(file))["results"]
        if not isinstance(results, dict):
            raise TypeError("its 'results' are no object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PreselError(
            f"{file}: this is no result of lmms-eval ({error}); remove it or export it again"
        ) from error
    return results


def _listed(arguments: Mapping[str, object]) -> str:
    """Formats arguments as lmms-eval expects them."""
    return ",".join(f"{name}={value}" for name, value in arguments.items())


def _environment() -> dict[str, str]:
    """Our environment, with the hub token under its older name, since lmms-eval logs HF_TOKEN."""
    environment = dict(os.environ)
    if token := environment.pop("HF_TOKEN", None):
        environment["HUGGING_FACE_HUB_TOKEN"] = token
    return environment


def _printed(log: Path) -> str:
    return log.read_bytes().decode(errors="replace")


def _reason(text: str) -> str:
    """The last line that names an exception, which progress bars may follow; else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return (named or lines or ["no output"])[-1]
