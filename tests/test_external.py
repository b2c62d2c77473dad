"""Benchmarks run by other programs: stand-ins for the programs, their real formats, our own code in full."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from presel.errors import PreselError
from presel.external import LmmsColumn, LmmsEval, VlmEvalColumn, VlmEvalKit
from tests.conftest import TINY, Program, stage_lines

RESULTS = {
    "results": {
        "vqav2_val": {"alias": "vqav2_val", "exact_match,none": 0.791, "exact_match_stderr,none": 0.001},
        "mme": {"mme_cognition_score,none": 300.0, "mme_perception_score,none": 1417.6},
    }
}
COLUMNS = {
    "VQAv2": LmmsColumn(task="vqav2_val", metric="exact_match"),
    "MME": LmmsColumn(task="mme", metric="mme_perception_score", scale=0.01),
}
OVERRIDES = (
    "evaluation=lmms_eval",
    "~evaluation.columns",
    "+evaluation.columns={VQAv2: {task: vqav2_val, metric: exact_match}, "
    "MME: {task: mme, metric: mme_perception_score, scale: 0.01}}",
    *(override for override in TINY if not override.startswith("evaluation.")),
)


def lmms_eval(python: Path | None = None) -> LmmsEval:
    return LmmsEval(python=python, model_args={"device_map": "auto"}, columns=COLUMNS)


def stand_in(folder: Path, script: str) -> Path:
    """An interpreter that answers the question for lmms-eval, and otherwise runs a shell script."""
    file = folder / "python"
    file.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit 0\n{script}\n')
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


def test_lmms_evals_numbers_become_the_papers(tmp_path: Path) -> None:
    assert lmms_eval().scores(tmp_path) is None
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "20261124_results.json").write_text(json.dumps(RESULTS))
    assert lmms_eval().scores(tmp_path) == {"VQAv2": 0.791, "MME": pytest.approx(14.176)}
    later = {"results": {"vqav2_val": {"exact_match,none": 0.8}}}
    (tmp_path / "20261125_results.json").write_text(json.dumps(later))
    os.utime(tmp_path / "20261125_results.json", (2e9, 2e9))
    assert lmms_eval().scores(tmp_path) == {"VQAv2": 0.8, "MME": pytest.approx(14.176)}


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        (
            {"results": {"mme": RESULTS["results"]["mme"]}},
            "no number for vqav2_val/exact_match, the column 'VQAv2'",
        ),
        ({"scores": {}}, "this is no result of lmms-eval"),
        ([], "this is no result of lmms-eval"),
    ],
)
def test_results_that_lack_something(tmp_path: Path, results: Any, sentence: str) -> None:
    (tmp_path / "x_results.json").write_text(json.dumps(results))
    with pytest.raises(PreselError, match=sentence):
        lmms_eval().scores(tmp_path)


def test_an_interpreter_without_lmms_eval_is_told_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(PreselError, match="cannot be started"):
        lmms_eval(tmp_path / "none").check()
    (tmp_path / "python").write_text("#!/bin/sh\necho 'ModuleNotFoundError: lmms_eval' >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(PreselError, match=r"has no lmms-eval \(ModuleNotFoundError: lmms_eval\)"):
        lmms_eval(tmp_path / "python").check()


def test_lmms_eval_runs_on_the_merged_model_and_lands_in_the_table(program: Program, tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text(json.dumps(RESULTS))
    broken = stand_in(tmp_path, "echo out of memory; exit 3")
    python = f"evaluation.python={broken}"
    failed = program("run", "strategy=random", python, *OVERRIDES)
    assert failed.returncode == 2
    assert "lmms-eval ended with exit status 3 (out of memory)" in failed.stderr

    stand_in(tmp_path, "exit 0")
    silent = program("run", "strategy=random", python, *OVERRIDES)
    assert silent.returncode == 2
    assert "evaluation (random): the program left no results under" in silent.stderr

    # The last argument is the folder for results.
    script = (
        f'echo "$@" > {tmp_path}/called; for out; do :; done; cp {tmp_path}/answer.json $out/1_results.json'
    )
    stand_in(tmp_path, script)
    done = program("run", "strategy=random", python, *OVERRIDES)
    assert done.returncode == 0, done.stderr
    assert {label for label, how in stage_lines(done.stdout).items() if how == "computed"} == {
        "evaluation (random)"
    }
    (model,) = tmp_path.glob("outputs/store/merged/*/model")
    called = (tmp_path / "called").read_text()
    assert f"--model llava_hf --model_args pretrained={model},device_map=auto --tasks vqav2_val,mme" in called
    (summary,) = tmp_path.glob("outputs/runs/*/*/summary.csv")
    table = pd.read_csv(summary).set_index("strategy")
    assert table.loc["random", ["VQAv2", "MME", "requested"]].tolist() == [0.791, pytest.approx(14.176), 0.15]

    full = program("run", "strategy=full", python, *OVERRIDES)
    assert full.returncode == 0, full.stderr
    reported = program("report", "outputs/runs")
    assert reported.returncode == 0, reported.stderr
    report = pd.read_csv(tmp_path / "outputs" / "report" / "table.csv").set_index("setting")
    assert report.loc["random", "relative"] == 1
    assert report.loc["full", ["difference", "low", "high"]].tolist() == [0, 0, 0]


def test_where_lmms_eval_is_elsewhere_its_files_are_taken_in(program: Program, tmp_path: Path) -> None:
    overrides = ("run", "strategy=random", "evaluation.python=null", *OVERRIDES)
    asked = program(*overrides)
    assert asked.returncode == 2
    assert "run `python -m lmms_eval --model llava_hf" in asked.stderr
    (results,) = tmp_path.glob("outputs/store/external_evaluation/*/results")
    assert str(results) in asked.stderr
    (results / "20261124_results.json").write_text(json.dumps(RESULTS))
    done = program(*overrides)
    assert done.returncode == 0, done.stderr
    assert "1417.6" in done.stdout


def test_vlmevalkits_files(tmp_path: Path) -> None:
    kit = VlmEvalKit(
        columns={
            "MME": VlmEvalColumn(file="MME_score.csv", column="perception", scale=0.01),
            "POPE": VlmEvalColumn(file="POPE_score.csv", row="Overall", column="acc", scale=0.01),
        }
    )
    assert kit.scores(tmp_path) is None
    pd.DataFrame({"perception": [1417.6], "reasoning": [300.0]}).to_csv(
        tmp_path / "m_MME_score.csv", index=False
    )
    with pytest.raises(PreselError, match=r"no files end in POPE_score\.csv, the column 'POPE'"):
        kit.scores(tmp_path)
    pope = pd.DataFrame({"split": ["Overall", "random"], "Overall": [85.9, 87.0], "acc": [87.5, 88.0]})
    pope.to_csv(tmp_path / "m_POPE_score.csv", index=False)
    assert kit.scores(tmp_path) == {"MME": pytest.approx(14.176), "POPE": pytest.approx(0.875)}
    pope.rename(columns={"acc": "accuracy"}).to_csv(tmp_path / "m_POPE_score.csv", index=False)
    with pytest.raises(
        PreselError, match="not one number in column 'acc' of row 'Overall', for the column 'POPE'"
    ):
        kit.scores(tmp_path)
    with pytest.raises(PreselError, match=r"put its files \(MME_score\.csv, POPE_score\.csv\) under"):
        kit.run(tmp_path / "model", tmp_path, tmp_path / "log.txt")
