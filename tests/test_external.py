"""Benchmarks run by other programs: stand-ins for the programs, a real one's files, our own code in full."""

import csv
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra.utils import instantiate
from pydantic import ValidationError

from presel.errors import PreselError
from presel.evaluation.lmms_eval import LmmsColumn, LmmsEval
from presel.evaluation.vlmevalkit import VlmEvalColumn, VlmEvalKit
from presel.storage.stage import identity
from tests.composing import configured
from tests.helpers import OWN_STORE, TINY, Program, is_running, last_run, stage_lines

# What lmms-eval 0.7.3 left of a tiny model on copies of its nine tasks that read made-up data; the copies'
# names are the tasks' own here. MMBench writes submissions/ beside it.
LEFT = Path(__file__).parent / "lmms_eval"
(REAL,) = LEFT.glob("*__model/*_results.json")
RESULTS = json.loads(REAL.read_text())
SCORES = {"VQAv2": 0.375, "MME": pytest.approx(0.03125)}
COLUMNS = {
    "VQAv2": LmmsColumn(task="vqav2_val", metric="exact_match"),
    "MME": LmmsColumn(task="mme", metric="mme_perception_score", scale=0.0005),
}
OVERRIDES = (
    "evaluation=lmms_eval",
    *(f"~evaluation.columns.{name}" for name in ("SQA-I", "TextVQA", "MMBench-en", "MMBench-cn")),
    *(f"~evaluation.columns.{name}" for name in ("SEED-Bench", "MM-Vet", "POPE")),
    *(override for override in TINY if not override.startswith("evaluation.")),
)


POPE = VlmEvalColumn(file="POPE_score.csv", row="Overall", column="acc", scale=0.01)


def lmms_eval(python: Path | None = None, **changes: Any) -> LmmsEval:
    given = {"python": python, "model": "llava_hf", "model_args": {"device_map": "auto"}, "columns": COLUMNS}
    return LmmsEval(**given | changes)


def stand_in(folder: Path, script: str) -> Path:
    """An interpreter that answers the question for lmms-eval, and otherwise runs a shell script."""
    file = folder / "python"
    file.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit 0\n{script}\n')
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


def test_of_the_models_arguments_only_the_device_leaves_the_result_alone() -> None:
    keys = [
        identity(lmms_eval(model_args=given))
        for given in ({"device": "cuda"}, {"device_map": "auto"}, {"chat_template": "mine"})
    ]
    assert keys[0] == keys[1] != keys[2]


def test_the_configs_columns_name_what_lmms_eval_writes(tmp_path: Path) -> None:
    config = configured("evaluation.python=null", config="evaluation/lmms_eval").evaluation
    program: LmmsEval = instantiate(config, _convert_="all")
    assert program.scores(LEFT) == {
        "VQAv2": 0.375,
        "SQA-I": 0.0,
        "TextVQA": 0.375,
        "MME": pytest.approx(0.03125),
        "MMBench-en": 0.25,
        "MMBench-cn": 0.25,
        "SEED-Bench": pytest.approx(1 / 3),
        "MM-Vet": 0.5,
        "POPE": 0.0,
    }
    pope = {"pope": {"pope_accuracy,none": 0.8, "pope_f1_score,none": 0.7}}
    shutil.copytree(LEFT, tmp_path, dirs_exist_ok=True)
    (tmp_path / "20991231_000000_results.json").write_text(json.dumps({"results": pope}))
    scores = program.scores(tmp_path)
    assert scores is not None and scores["POPE"] == 0.7
    # Greedy, whatever a task's own temperature.
    command = program.for_family("llava").command(tmp_path / "model", tmp_path)
    assert command[command.index("--gen_kwargs") + 1] == "temperature=0"


def test_the_newest_results_count(tmp_path: Path) -> None:
    shutil.copytree(LEFT, tmp_path, dirs_exist_ok=True)
    assert lmms_eval().scores(tmp_path) == SCORES
    for date, score in (("20261126_000000", 0.8), ("20261124_000000", 0.1)):
        results = {"results": {"vqav2_val": {"exact_match,none": score}}}
        (tmp_path / f"{date}_results.json").write_text(json.dumps(results))
    assert lmms_eval().scores(tmp_path) == SCORES | {"VQAv2": 0.8}


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        (
            {"results": RESULTS["results"] | {"vqav2_val": {"exact_match,none": "N/A"}}},
            "no number for vqav2_val/exact_match, the column 'VQAv2'",
        ),
        (
            {"results": {"mme": RESULTS["results"]["mme"]}},
            "no number for vqav2_val/exact_match, the column 'VQAv2'",
        ),
        ({"scores": {}}, "this is no result of lmms-eval"),
        ([], "this is no result of lmms-eval"),
        ({"results": [["vqav2_val", 1]]}, "this is no result of lmms-eval"),
        ({"results": {"vqav2_val": None}}, r"no number for vqav2_val/exact_match, .* \(found: nothing\)"),
        ({"results": {"vqav2_val": 0.5}}, r"no number for vqav2_val/exact_match, .* \(found: nothing\)"),
        *(
            ({"results": {"vqav2_val": {"exact_match,none": value}}}, sentence)
            for value, sentence in (
                (None, r"no number for vqav2_val/exact_match, the column 'VQAv2' \(found: nothing\)"),
                ("85.2%", r"no number for .* \(found: '85\.2%'\); .* ~evaluation\.columns\.VQAv2$"),
                (True, r"no number for .* \(found: True\)"),
                ([0.5], r"no number for .* \(found: \[0\.5\]\)"),
                (10**400, r"no number for .* \(found: 10000"),
                (float("nan"), r"nan for vqav2_val/exact_match, the column 'VQAv2', is no score"),
                (float("inf"), "inf for .* is no score"),
                (-0.1, "-0.1 for .* is no score"),
                (85.2, r"85\.2 for .*, since 1 times .* from 0 to 1; .*evaluation\.columns\.VQAv2\.scale"),
            )
        ),
        (
            {"results": {"vqav2_val": {"exact_match,strict-match": 0.1, "exact_match,flexible": 0.9}}},
            r"several filters \(exact_match,strict-match and exact_match,flexible\); .*"
            "'evaluation.columns.VQAv2.metric=\"exact_match,strict-match\"'",
        ),
    ],
)
def test_results_that_lack_something(tmp_path: Path, results: Any, sentence: str) -> None:
    (tmp_path / REAL.name).write_text(json.dumps(results))
    with pytest.raises(PreselError, match=f"{tmp_path}.*: .*{sentence}"):
        lmms_eval().scores(tmp_path)


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        (b"", "this is no result of lmms-eval"),
        (b"[" * 100_000, "this is no result of lmms-eval"),
        ('{"results": {}, "说": "好"}'.encode("gbk"), "not UTF-8; convert it"),
        ('{"results": {}}'.encode("utf-16"), "not UTF-8; convert it"),
    ],
)
def test_files_that_are_no_results(tmp_path: Path, written: bytes, sentence: str) -> None:
    (tmp_path / REAL.name).write_bytes(written)
    with pytest.raises(PreselError, match=f"{REAL.name}: .*{sentence}"):
        lmms_eval().scores(tmp_path)


def test_a_metric_may_name_its_filter(tmp_path: Path) -> None:
    results = {"g": {"exact_match,strict-match": 0.1, "exact_match,flexible": "0.9"}, "mme": "failed"}
    (tmp_path / REAL.name).write_text(json.dumps({"results": results}), encoding="utf-8-sig")
    for chosen, score in (("strict-match", 0.1), ("flexible", 0.9)):
        columns = {"G": LmmsColumn(task="g", metric=f"exact_match,{chosen}")}
        assert lmms_eval(columns=columns).scores(tmp_path) == {"G": score}


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / REAL.name)
    os.mkfifo(tmp_path / "m_POPE_score.csv")
    assert lmms_eval().scores(tmp_path) is None
    assert VlmEvalKit(columns={"POPE": POPE}).scores(tmp_path) is None


def test_an_interpreter_that_cannot_evaluate_is_reported_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(PreselError, match="cannot be started"):
        lmms_eval(tmp_path / "none").check()
    (tmp_path / "python").write_text("#!/bin/sh\necho 'ModuleNotFoundError: decord' >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(PreselError, match=r"cannot evaluate \(ModuleNotFoundError: decord\); install 'lmms_"):
        lmms_eval(tmp_path / "python").check()


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llava", "llava_hf"),
        ("llava_next", "llava_hf"),
        ("llava_onevision", "llava_hf"),
        ("qwen2_vl", "qwen2_vl"),
        ("qwen2_5_vl", "qwen2_5_vl"),
        ("qwen3_vl", "qwen3_vl"),
        ("internvl", "internvl_hf"),
        ("gemma3", "gemma3"),
    ],
)
def test_the_model_class_is_that_of_the_family(family: str, name: str) -> None:
    program = lmms_eval(model=None).for_family(family)
    assert program == lmms_eval(model=name).for_family(family)
    command = program.command(Path("model"), Path("results"))
    assert command[command.index("--model") + 1] == name


def test_a_model_class_of_another_family_is_refused() -> None:
    with pytest.raises(PreselError, match=r"evaluation\.model: no class .* type smolvlm, .*=NAME"):
        lmms_eval(model=None).for_family("smolvlm")
    with pytest.raises(
        PreselError, match=r"model=llava_hf: .* qwen2_5_vl; set evaluation\.model=qwen2_5_vl$"
    ):
        lmms_eval(model="llava_hf").for_family("qwen2_5_vl")
    with pytest.raises(PreselError, match=r"model=llava_hf: .* smolvlm; name a class that reads that$"):
        lmms_eval(model="llava_hf").for_family("smolvlm")
    # A class that may read anything, or that lmms-eval got by a plugin.
    assert lmms_eval(model="vllm").for_family("smolvlm") == lmms_eval(model="vllm")
    kit = VlmEvalKit(columns={"POPE": POPE})
    assert kit.for_family("smolvlm") is kit


def test_a_model_class_that_does_not_fit_is_reported_before_any_work(
    in_process: Program, tmp_path: Path
) -> None:
    # Only its type matters here.
    (tmp_path / "smolvlm").mkdir()
    (tmp_path / "smolvlm/config.json").write_text('{"model_type": "smolvlm"}')
    given = ("evaluation.python=null", *OVERRIDES, OWN_STORE)
    refused = in_process.refuses("run", "evaluation.model=qwen2_vl", *given)
    assert "reads models of type qwen2_vl, and the one of lvlm.path is llava" in refused
    assert not list(tmp_path.glob("outputs/store/*/*/manifest.json"))
    # The doctor cannot say of a model that is not there yet.
    for lvlm, details in (
        (("lvlm=hf", "lvlm.path=smolvlm"), ["no class of lmms-eval is known to read models of type smolvlm"]),
        (("lvlm=llava15_7b",), []),
    ):
        diagnosis = in_process("doctor", *lvlm, *given, "--json", "-")
        faults = [one for one in json.loads(diagnosis.stdout)["findings"] if one["severity"] == "fault"]
        assert [one["kind"] for one in faults] == len(details) * ["evaluation not available"]
        assert all(detail in one["detail"] for detail, one in zip(details, faults, strict=True))


def test_a_judge_without_a_key_is_reported_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    column = LmmsColumn(task="mmvet", metric="gpt_eval_score", key_variable="SOME_KEY")
    judged = lmms_eval(stand_in(tmp_path, "exit 0"), columns={"MM-Vet": column})
    with pytest.raises(PreselError, match=r"evaluation\.columns\.MM-Vet: .*mmvet, and SOME_KEY is not set"):
        judged.check()
    monkeypatch.setenv("SOME_KEY", "sk")
    judged.check()


def test_the_address_of_a_local_judge_has_the_form_that_the_task_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = configured("evaluation.python=null", config="evaluation/lmms_eval").evaluation
    program: LmmsEval = instantiate(config, _convert_="all")
    python = stand_in(tmp_path, "exit 0")
    judged = {
        name: lmms_eval(python, columns={name: program.columns[name]})
        for name in ("VQAv2", "MMBench-en", "MMBench-cn", "MM-Vet")
    }
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    base = "http://localhost:8000/v1"
    for url, refused in ((base, {"MMBench-en", "MMBench-cn"}), (f"{base}/chat/completions", {"MM-Vet"})):
        monkeypatch.setenv("OPENAI_API_URL", url)
        for name, one in judged.items():
            if name not in refused:
                one.check()
                continue
            with pytest.raises(
                PreselError, match=rf"columns\.{name}: .* takes OPENAI_API_URL with.* run of its own"
            ):
                one.check()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell no process that its parent ended")
def test_lmms_eval_ends_with_a_killed_run(tmp_path: Path) -> None:
    stand_in(tmp_path, f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/started; exec sleep 600")
    code = (
        "from pathlib import Path; from tests.test_external import lmms_eval; "
        f"folder = Path({str(tmp_path)!r}); lmms_eval(folder / 'python').run(folder, folder, folder / 'log')"
    )
    run = subprocess.Popen([sys.executable, "-c", code])
    started = tmp_path / "started"
    while not started.exists():
        assert run.poll() is None
        time.sleep(0.01)
    run.kill()
    run.wait()
    limit = time.monotonic() + 60
    while is_running(int(started.read_text())):
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_what_lmms_eval_is_asked_for_and_what_it_logs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    log = tmp_path / "log.txt"
    log.write_text("Error of an earlier run in generating\n")
    script = """
echo "$@"
echo "token: $HF_TOKEN, $HUGGING_FACE_HUB_TOKEN"
printf '\\033[1mError CUDA out of memory in generating\\033[0m\\n'
"""
    own = lmms_eval(stand_in(tmp_path, script), include_path=tmp_path / "tasks")
    results = tmp_path / "results"
    own.run(tmp_path / "model", results, log)
    lines = log.read_text().splitlines()
    asked = (
        f"--tasks vqav2_val,mme --include_path {tmp_path / 'tasks'} --gen_kwargs temperature=0 --batch_size 1"
    )
    assert asked in lines[0]
    assert lines[1] == "token: , secret"
    failure = own.hidden_failure(log)
    assert failure is not None
    assert "failed on 1 questions (CUDA out of memory), which lmms-eval counts as wrong answers" in failure
    assert replace(own, max_failures=1).hidden_failure(log) is None
    log.write_text(
        "Error of an earlier run\n" + 2 * "Error CUDA error: an\nillegal memory access in generating\n"
    )
    failure = own.hidden_failure(log)
    assert failure is not None and "failed on 2 questions (CUDA error: an illegal memory access)" in failure
    assert own.hidden_failure(tmp_path / "none") is None

    stand_in(tmp_path, "echo 'ValueError: no chat template'; printf 'Model Responding: 0%%'; exit 1")
    with pytest.raises(PreselError, match=r"exit status 1 \(ValueError: no chat template\)"):
        own.run(tmp_path / "model", results, log)


def test_lmms_eval_runs_on_the_merged_model_and_lands_in_the_table(
    in_process: Program, tmp_path: Path
) -> None:
    broken = stand_in(tmp_path, "echo out of memory; exit 3")
    python = f"evaluation.python={broken}"
    failed = in_process.refuses("run", "strategy=random", python, *OVERRIDES)
    assert "lmms-eval ended with exit status 3 (out of memory)" in failed

    stand_in(tmp_path, "exit 0")
    silent = in_process.refuses("run", "strategy=random", python, *OVERRIDES)
    assert "external_evaluation (random): the program left no results under" in silent

    # The last argument is the folder for results, which are not taken while the log has failures.
    leaves = f"for out; do :; done; cp -r {LEFT}/* $out/"
    stand_in(tmp_path, f"echo Error CUDA out of memory in generating; {leaves}")
    for _ in range(2):
        refused = in_process.refuses("run", "strategy=random", python, *OVERRIDES)
        assert "failed on 1 questions (CUDA out of memory)" in refused
        stand_in(tmp_path, "exit 3")
    in_process.succeeds("run", "strategy=random", python, *OVERRIDES, "evaluation.max_failures=1")
    shutil.rmtree(last_run(tmp_path).folder)
    # Whoever has not accepted them does not get the result.
    assert refused == in_process.refuses("run", "strategy=random", python, *OVERRIDES)
    (folder,) = re.findall(r"delete (\S+) and", refused)
    shutil.rmtree(tmp_path / folder)
    stand_in(tmp_path, f'echo "$@" > {tmp_path}/called; {leaves}')
    done = in_process.succeeds("run", "strategy=random", python, *OVERRIDES)
    assert {label for label, how in stage_lines(done.stdout).items() if how == "computed"} == {
        "external_evaluation (random)"
    }
    model = last_run(tmp_path).stages["merged"].folder / "model"
    called = (tmp_path / "called").read_text()
    assert (
        f"--model llava_hf --model_args pretrained={model},device=cuda,device_map=auto --tasks vqav2_val,mme"
        in called
    )
    assert "--verbosity DEBUG" in called
    results = last_run(tmp_path).stages["evaluation"].folder / "results"
    assert f"results                       {results}" in done.stdout
    (summary,) = tmp_path.glob("outputs/runs/*/*/summary.csv")
    table = pd.read_csv(summary).set_index("strategy")
    assert table.loc["random", ["VQAv2", "MME", "requested"]].tolist() == [
        0.375,
        pytest.approx(0.03125),
        0.15,
    ]

    in_process.succeeds("run", "strategy=full", python, *OVERRIDES)
    in_process.succeeds("report", "outputs/runs")
    report = pd.read_csv(tmp_path / "outputs" / "report" / "table.csv").set_index("setting")
    assert report.loc["random", "relative"] == 1
    assert report.loc["full", "difference"] == 0
    # Of one seed there is no interval.
    assert report.loc["full", ["low", "high"]].isna().all()


def test_where_lmms_eval_is_elsewhere_its_files_are_taken_in(in_process: Program, tmp_path: Path) -> None:
    store = "paths.store=outputs/my store"
    overrides = ("run", "strategy=random", "evaluation.python=null", *OVERRIDES, store)
    asked = in_process.refuses(*overrides)
    (command,) = re.findall("run `([^`]*)`", asked)
    assert command.startswith("python -m lmms_eval --model llava_hf")
    assert any(word.endswith("/results") and "my store" in word for word in shlex.split(command))
    (results,) = tmp_path.glob("outputs/my store/external_evaluation/*/results")
    assert str(results) in asked
    shutil.copytree(LEFT, results, dirs_exist_ok=True)
    done = in_process.succeeds(*overrides)
    assert "37.5" in done.stdout and "3.1" in done.stdout


def test_vlmevalkits_files(tmp_path: Path) -> None:
    kit = VlmEvalKit(
        columns={
            "MME": VlmEvalColumn(file="MME_score.csv", column="perception", scale=0.0005),
            "POPE": VlmEvalColumn(file="POPE_score.csv", row="Overall", column="Overall", scale=0.01),
        }
    )
    assert kit.scores(tmp_path) is None
    pd.DataFrame({"perception": [1417.6], "reasoning": [300.0]}).to_csv(
        tmp_path / "m_MME_score.csv", index=False
    )
    with pytest.raises(PreselError, match=r"no files end in POPE_score\.csv, the column 'POPE'"):
        kit.scores(tmp_path)
    # As its POPE_rating writes them; the column Overall is F1.
    pope = pd.DataFrame({"split": ["Overall", "random"], "Overall": [85.9, 87.0], "acc": [87.5, 88.0]})
    pope = pope.assign(precision=[97.0, 98.0], recall=[77.1, 78.3])
    pope.to_csv(tmp_path / "m_POPE_score.csv", index=False, quoting=csv.QUOTE_ALL)
    (tmp_path / "T20261125").mkdir()
    (tmp_path / "m_POPE_score.csv").rename(tmp_path / "T20261125" / "m_POPE_score.csv")
    (tmp_path / "m_POPE_score.csv").symlink_to(Path("T20261125") / "m_POPE_score.csv")
    assert kit.scores(tmp_path) == {"MME": pytest.approx(0.7088), "POPE": pytest.approx(0.859)}
    pope.rename(columns={"Overall": "F1"}).to_csv(tmp_path / "m_POPE_score.csv", index=False)
    with pytest.raises(
        PreselError, match="not one number in column 'Overall' of row 'Overall', for the column 'POPE'"
    ):
        kit.scores(tmp_path)
    with pytest.raises(PreselError, match=r"put its files \(MME_score\.csv, POPE_score\.csv\) under"):
        kit.run(tmp_path / "model", tmp_path, tmp_path / "log.txt")


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        (
            "Overall,85.2%",
            r"no number for column 'acc' of row 'Overall', the column 'POPE' \(found: '85\.2%'\)",
        ),
        ("Overall,failed", "no number for .* 'failed'"),
        ("Overall,", "no number for .* ''"),
        ("Overall,N/A", "no number for .* 'N/A'"),
        ('Overall,"85,2"', "no number for .* '85,2'"),
        ("Overall,NaN", "nan for column 'acc' of row 'Overall', the column 'POPE', is no score"),
        ("Overall,-inf", "-inf for .* is no score"),
        ("Overall,-1", "-1.0 for .* is no score"),
        ("Overall,852", r"852\.0 for .* is no score, since 0\.01 times that is not from 0 to 1;"),
        ("Overall,85\nOverall,86", r"not one number in column 'acc' .* \(2 rows with split, acc\)"),
        ("random,85", r"not one number in column 'acc' .* \(0 rows with split, acc\)"),
        ("Overall,85,1", "no complete CSV file .its rows differ in length"),
        ("Overall", "no complete CSV file .its rows differ in length"),
        ('Overall,85\na,"', "no complete CSV file .unexpected end of data"),
    ],
)
def test_vlmevalkits_files_that_hold_no_score(written: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "m_POPE_score.csv").write_text(f"split,acc\n{written}\n")
    with pytest.raises(PreselError, match=rf"m_POPE_score\.csv: .*{sentence}"):
        VlmEvalKit(columns={"POPE": POPE}).scores(tmp_path)


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        (b"", "no complete CSV file .it is empty"),
        ("split,acc,备注\nOverall,85,好\n".encode("gbk"), "not UTF-8"),
        ("split,acc\nOverall,85\n".encode("utf-16"), "not UTF-8"),
        (b"split;acc\nOverall;85\n", "not one number in column 'acc' .*with split;acc"),
        (b"split,acc,acc\nOverall,85,86\n", "not one number in column 'acc' .*with split, acc, acc"),
    ],
)
def test_files_that_are_none_of_vlmevalkits(written: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "m_POPE_score.csv").write_bytes(written)
    with pytest.raises(PreselError, match=rf"m_POPE_score\.csv: .*{sentence}"):
        VlmEvalKit(columns={"POPE": POPE}).scores(tmp_path)


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path: Path) -> None:
    (tmp_path / "m_POPE_score.csv").write_text(
        f"split,acc,log\r\nOverall, 85,{'x' * 140_000}\r\n\r\n", encoding="utf-8-sig"
    )
    assert VlmEvalKit(columns={"POPE": POPE}).scores(tmp_path) == {"POPE": pytest.approx(0.85)}
    column = VlmEvalColumn(file="POPE_score.csv", column="acc", scale=0.01)
    assert VlmEvalKit(columns={"POPE": column}).scores(tmp_path) == {"POPE": pytest.approx(0.85)}


def test_columns_that_no_file_can_fill_are_refused_at_once() -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        VlmEvalColumn(file="OCRBench_score.json", column="acc")
    with pytest.raises(ValidationError, match="at least 1 item"):
        VlmEvalKit(columns={})
