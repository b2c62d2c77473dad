"""Runs from Python, in the caller's process, and the records that runs leave."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given, settings
from hypothesis import strategies as st

import presel
from presel.evaluation.scores import ModelScores
from presel.runs import RunRecord, StageRecord
from tests.documents import blocks
from tests.helpers import OWN_STORE, TINY, Program, environment, last_run, stage_lines

PAGE = Path(__file__).parent.parent / "docs" / "how_to" / "python.md"
SELECT = [*TINY, OWN_STORE, "strategy=random", "until=selection"]

text = st.text(min_size=1)
# Names of files that are not UTF-8 hold lone surrogates.
folder = st.builds(Path, st.text(st.characters(exclude_characters="\0"), min_size=1) | st.just("b\udcfcro"))
share = st.floats(0, 1)
stage = st.builds(StageRecord, name=text, key=text, label=text, folder=folder)
scores = st.builds(
    ModelScores,
    name=text,
    scores=st.dictionaries(text, share, min_size=1),
    requested=st.none() | share,
    seconds=st.none() | share,
)
record = st.builds(
    RunRecord,
    folder=st.just(Path("run")),
    strategy=text,
    seed=st.integers(0),
    overrides=st.lists(text),
    image_folder=folder,
    stages=st.dictionaries(text, stage),
    tuned=st.none() | scores,
    baselines=st.lists(scores),
    full_evaluation=st.none() | folder,
    versions=st.dictionaries(text, text),
    git_commit=st.none() | text,
)


@given(record)
@settings(max_examples=30)
def test_a_record_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, run: RunRecord) -> None:
    run = replace(run, folder=tmp_path_factory.mktemp("run"))
    run.write()
    assert presel.load_run(run.folder) == run
    # As written before settings of strategies were among them.
    file = run.folder / "run.json"
    saved = json.loads(file.read_text())
    saved["unused_groups"] = saved.pop("unused")
    file.write_text(json.dumps(saved))
    assert presel.load_run(run.folder) == run


def test_the_public_names_cost_nothing_until_they_are_used() -> None:
    heavy = "{'torch', 'hydra', 'omegaconf', 'numpy', 'pandas'}"
    code = f"import sys, presel; print({heavy} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "set()\n"
    assert all(callable(getattr(presel, name)) for name in presel.__all__ if name != "__version__")


def test_runs_in_one_process_share_the_store_with_the_command_line(
    in_process: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first = presel.run(SELECT)
    assert set(stage_lines(capsys.readouterr().out).values()) == {"computed"}
    second = presel.run(SELECT)
    assert stage_lines(capsys.readouterr().out) == dict.fromkeys(
        (stage.label for stage in first.stages.values()), "reused"
    )
    assert first.folder != second.folder
    assert first.stages == second.stages
    assert list(first.stages) == ["images.scenes", "images", "selection"]

    in_process.succeeds("run", *SELECT)
    (file,) = set(tmp_path.glob("outputs/runs/*/*/run.json")) - {
        run.folder / "run.json" for run in (first, second)
    }
    typed = presel.load_run(file.parent)
    assert replace(typed, folder=first.folder) == first
    assert typed.config == first.config == presel.compose(SELECT)

    selection = presel.load_run(first.folder).selection
    assert (len(selection), selection["selected"].sum()) == (200, 30)
    assert first.chosen["id"].tolist() == selection["id"][selection["selected"]].tolist()
    assert all((first.image_folder / image).is_file() for image in first.chosen["image"])
    with pytest.raises(presel.PreselError, match=r"has no evaluation; run .* again with until=evaluation"):
        _ = first.scores


def test_an_unfinished_run_is_not_taken_for_an_earlier_one_in_its_folder(
    in_process: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = presel.run([*SELECT, "hydra.run.dir=here"])
    assert [one for one in run.overrides if "hydra" in one] == []
    # What is refused before any work changes nothing.
    with pytest.raises(presel.PreselError, match="nowhere"):
        presel.run(["pool=image_folder", "pool.images=nowhere", "until=selection", "hydra.run.dir=here"])
    in_process.refuses("run", *SELECT, "hydra.run.dir=here", "budget=5000")
    in_process.refuses("run", *SELECT, "hydra.run.dir=here", "until=lunch")
    assert presel.load_run(run.folder) == run
    assert presel.load_run("here").config == run.config
    with pytest.raises(presel.Paused):
        presel.run([*SELECT, "hydra.run.dir=here", "instructions=label_studio", "until=instructions"])
    with pytest.raises(presel.PreselError, match="here"):
        presel.load_run("here")


def test_own_strategies_are_found_in_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from presel.component import component\nfrom presel.strategies.random import Random\n\n\n"
        "@component\nclass Mine(Random):\n    pass\n"
    )
    (tmp_path / "scripts").mkdir()
    settings = [*SELECT, "strategy._target_=mine.Mine"]
    (tmp_path / "scripts/one.py").write_text(f"import presel\nprint(presel.run({settings}).strategy)\n")
    ended = subprocess.run(
        [sys.executable, "scripts/one.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert ended.stdout.splitlines()[-1] == "mine"


def test_overrides_are_text() -> None:
    with pytest.raises(presel.PreselError, match=r"override PosixPath\('x'\) is no text; write 'key=value'"):
        presel.compose([Path("x")])  # type: ignore[list-item]


def test_a_sweep_is_not_taken_for_one_run() -> None:
    with pytest.raises(
        presel.PreselError,
        match="is a sweep over seed, strategy, and this is about one run; give each",
    ):
        presel.compose(["experiment=table1"])
    with pytest.raises(presel.PreselError, match="sweep over seed,"):
        presel.compose(["experiment=table1", "strategy=full"])
    assert presel.compose(["experiment=table1", "strategy=full", "seed=3"]).seed == 3
    assert presel.compose(["experiment=table1", "hydra.mode=RUN"]).seed == 0


def test_the_commit_is_that_of_this_code_not_of_a_checkout_around_it(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(
        ["git", "-C", str(tmp_path), *author, "commit", "-q", "--allow-empty", "-m", "x"], check=True
    )
    shutil.copytree(Path(presel.__file__).parent, tmp_path / "env/presel")
    code = "from presel.storage.provenance import git_commit; print(git_commit())"
    asked = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment(PYTHONPATH=str(tmp_path / "env")),
        cwd=tmp_path,
    )
    assert asked.stdout == "None\n"


def test_what_a_run_reads_before_it_selects(in_process: Program, tmp_path: Path) -> None:
    found = {}
    for strategy in ("random", "typiclust", "prism", "presel", "ifd"):
        in_process.succeeds("run", *TINY, f"strategy={strategy}", "until=selection")
        found[strategy] = last_run(tmp_path).requested_first
    # 5 % of each task are 11 images; `ifd` reads them too, and they count once.
    assert found == {"random": 0, "typiclust": 0, "prism": 0, "presel": 11 / 200, "ifd": 1}


def test_a_record_that_lacks_a_stage_is_refused(in_process: Program, tmp_path: Path) -> None:
    in_process.succeeds("run", *TINY, "strategy=ifd", "until=selection")
    run = last_run(tmp_path)
    run = replace(run, stages={role: run.stages[role] for role in run.stages if role != "all_instructions"})
    with pytest.raises(
        presel.PreselError, match=r"run\.json lacks stage instructions/\w+; run the same command"
    ):
        _ = run.requested_first


def test_the_callers_hydra_arguments_and_logging_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("lr: 1")

    def state() -> tuple[Any, ...]:
        root = logging.getLogger()
        return sys.argv[:], sys.path[:], dict(os.environ), root.level, root.handlers[:]

    before = state()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        presel.compose()
        with pytest.raises(presel.PreselError, match=r"budget is -1\.0; it must be a share"):
            presel.run([*SELECT, "budget=-1"])
        with pytest.raises(presel.PreselError, match="did you mean 'budget'"):
            presel.run([*SELECT, "budgt=1"])
        assert compose("own").lr == 1
    assert not GlobalHydra.instance().is_initialized()
    assert state() == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pool.sise=3", "there is no setting 'pool.sise' (did you mean 'pool.size'?)"),
        ("strategy=randm", "strategy=randm: there is no such option (did you mean 'random'?)"),
        ("until=lunch", "until is lunch; it must be one of selection, instructions, model"),
        ("instructions.api_key=sk-123", "instructions.api_key: a key may not be given on the command line"),
        ("pool.images=", "pool.images is empty; name a folder"),
        ("+hydra.job.env_set.A=b", "hydra.job.env_set.A: a configuration file may not set environment"),
    ],
)
def test_overrides_are_checked_as_on_the_command_line(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(presel.PreselError, match=re.escape(message)):
        presel.run([*SELECT, override])
    assert not (tmp_path / "outputs" / "store").exists()


def test_a_run_that_waits_for_people_raises_paused(
    pool_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pool_folder)
    pool = ["pool=image_folder", "pool.images=images", "pool.task=x", "instructions=label_studio"]
    with pytest.raises(presel.Paused, match="Label Studio"):
        presel.run([*pool, "strategy=random", "executor.workers=0", "until=instructions", "budget=3"])


def script(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Runs a file there by Python; one that waits for itself ends in an error."""
    (folder / "script.py").write_text(text)
    return subprocess.run(
        [sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )


def test_a_script_without_a_guard_is_refused_by_the_workers_that_import_it(
    pool_folder: Path, tmp_path: Path
) -> None:
    settings = [
        *("pool=image_folder", f"pool.images={pool_folder}/images", "pool.task=x", OWN_STORE),
        *("strategy=random", "until=selection", "budget=3", "executor.workers=1"),
    ]
    ended = script(tmp_path, f"import presel\npresel.run({settings})\n")
    assert ended.returncode == 1
    assert "move what the script does under `if __name__ == '__main__':`" in ended.stderr
    assert "a worker process died while it checked images" in ended.stderr.splitlines()[-1]


def test_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # As a script too, which worker processes import; what follows finds its runs in the store.
    first = script(tmp_path, next(block for _, block in blocks(PAGE)))
    assert first.returncode == 0, first.stderr
    names: dict[str, Any] = {"__name__": "__main__"}
    for language, block in blocks(PAGE):
        assert language == "python"
        exec(compile(block, PAGE.name, "exec"), names)
    printed = capsys.readouterr().out
    assert re.search(r"^\d of 30 images in common$", printed, re.MULTILINE)
    assert "there is no setting 'budgt' (did you mean 'budget'?)" in printed


def test_flags_may_stand_between_overrides(in_process: Program, tmp_path: Path) -> None:
    (tmp_path / "mine/strategy").mkdir(parents=True)
    (tmp_path / "mine/strategy/own.yaml").write_text("_target_: presel.strategies.random.Random\n")
    printed = in_process.succeeds(
        "run", "strategy=own", "--config-dir", "mine", "seed=3", "--cfg", "job", "budget=7"
    ).stdout
    config = yaml.safe_load(printed)
    assert (config["seed"], config["budget"]) == (3, 7)
