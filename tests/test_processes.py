"""Several processes on CPUs: the results of one, in sweeps too, and an end when one of them is killed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from presel.distributed.launch import failure_message
from presel.distributed.runtime import Runtime
from presel.distributed.stage import read_task, write_task
from presel.instructions.annotations import Annotations
from presel.models.batching import plan_epoch, split_across_ranks
from presel.models.hardware import Hardware
from presel.models.lvlm import Lvlm
from presel.models.tune import Tune
from presel.stages.instructions import InstructionsStage
from presel.stages.pool import PoolStage
from presel.stages.reference import ReferenceStage
from presel.stages.tuning import TuningStage
from tests.helpers import (
    OWN_STORE,
    TINY,
    Program,
    command,
    environment,
    is_running,
    on_folder,
    stage_files,
)

TWO = ("trainer.devices=2", "trainer.accelerator=cpu")
# 15 micro batches, one of them a single sample, 4 a step: 4 steps an epoch, the last one of 3.
RECIPE = (
    *(
        "strategy=random",
        "until=model",
        "budget=29",
        "seed=3",
        "tune.batch_size=8",
        "tune.micro_batch_size=2",
    ),
    *("tune.epochs=3", "tune.lora_dropout=0.1", "tune.checkpoint_steps=1"),
)


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_all_processes_together_take_the_steps_of_one(
    count: int, processes: int, accumulate: int, micro: int
) -> None:
    ids, lengths = list(map(str, range(count))), [1] * count
    a_step = processes * accumulate
    steps = plan_epoch(ids, lengths, lengths, a_step * micro, micro, seed=0)
    shares = [split_across_ranks(steps, rank, processes, a_step) for rank in range(processes)]
    for number, step in enumerate(steps):
        taken = [share[number] for share in shares]
        assert {len(batches) for batches in taken} == {accumulate}
        # Batch by batch, as the number that seeds dropout counts them.
        in_turn = [batch for row in zip(*taken, strict=True) for batch in row]
        assert in_turn[: len(step)] == step
        assert {batch.step_tokens for batch in in_turn} == {step[0].step_tokens}
        assert not any(batch.rows for batch in in_turn[len(step) :])


def test_a_process_gets_the_stage_with_its_key(pool_folder: Path, pool: PoolStage, tmp_path: Path) -> None:
    instructions = InstructionsStage(
        pool=pool,
        chosen=ReferenceStage(pool=pool, share=0.1, seed=0),
        provider=Annotations(),
        purpose="reference",
    )
    recipe = Tune(lr=1e-3, projector_lr=1e-4, batch_size=4, micro_batch_size=2, lora_rank=4, lora_alpha=8)
    lvlm = Lvlm(path="builtin:digit_llava")
    stage = TuningStage(
        instructions=instructions,
        lvlm=lvlm,
        tune=recipe,
        seed=0,
        runtime=Runtime(hardware=Hardware(strategy="ddp", devices=2)),
    )
    write_task(tmp_path, stage, Path("store"), Path("folder"))
    # The sources are not read again.
    (pool_folder / "pool.json").unlink()
    again, store, folder = read_task(tmp_path)
    assert (again, store, folder) == (stage, Path("store"), Path("folder"))
    assert again.key == stage.key


@pytest.fixture
def one(in_process: Program, pool_folder: Path, shared_store: Path) -> Path:
    """A store with the training of `RECIPE` by one process alone, computed once for all tests."""
    store = shared_store.with_name("one_process")
    recipe = (*on_folder(pool_folder), *RECIPE)
    in_process.succeeds("run", *recipe, "trainer=cpu", f"paths.store={store}")
    return store


def losses(store: Path) -> pd.Series:
    """The losses logged by the runs of the only fine-tune, by step."""
    files = sorted(store.glob("model/*/metrics/version_*/metrics.csv"))
    logged = pd.concat([pd.read_csv(file) for file in files]).drop_duplicates("step", keep="last")
    return logged.set_index("step")["train/loss"].sort_index()


def adapter(store: Path) -> dict[str, torch.Tensor]:
    """The weights of the only fine-tune."""
    (file,) = store.glob("model/*/adapter/adapter_model.safetensors")
    return load_file(file)


def assert_same_training(store: Path, reference: Path) -> None:
    logged = losses(store)
    pd.testing.assert_series_equal(logged, losses(reference).loc[logged.index], atol=1e-4, rtol=0)
    ours, theirs = adapter(store), adapter(reference)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-4, rtol=0)
    assert [path.name for path in store.glob("model/*")] == [path.name for path in reference.glob("model/*")]


def workers_of(folder: Path) -> dict[int, int]:
    """The running processes that work on a stage under a folder: rank → process id."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().split("\0")
            if "presel.distributed.worker" in words and str(folder) in words[-2]:
                rank = re.search(r"\0RANK=(\d+)\0", (process / "environ").read_text())
                # torchrun, which has the same words, has no rank.
                if rank:
                    found[int(rank[1])] = int(process.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.slow
def test_two_processes_train_as_one_also_in_a_sweep(program: Program, pool_folder: Path, one: Path) -> None:
    recipe = (*on_folder(pool_folder), *RECIPE)
    program.succeeds(
        "run",
        "-m",
        *recipe,
        "trainer=ddp,fsdp",
        *TWO,
        "paths.store=${hydra:runtime.choices.trainer}",
    )
    for strategy in ("ddp", "fsdp"):
        assert_same_training(pool_folder / strategy, one)
        assert len(losses(pool_folder / strategy)) == 12
    assert len(list(pool_folder.glob("outputs/runs/*/*/*/run.json"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_killed_process_ends_the_run_which_then_resumes(
    program: Program, pool_folder: Path, one: Path, strategy: str
) -> None:
    recipe = (*on_folder(pool_folder), *RECIPE)
    cut = ("run", *recipe, f"trainer={strategy}", *TWO, "paths.store=cut")
    with (pool_folder / "stderr").open("w") as errors:
        run = subprocess.Popen(
            command(*cut),
            cwd=pool_folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    while not list(pool_folder.glob("cut/model/*/checkpoints/*/step=3.ckpt")):
        assert run.poll() is None
        time.sleep(0.01)
    os.kill(workers_of(pool_folder)[1], signal.SIGKILL)
    assert run.wait(timeout=60) == 2
    told = (pool_folder / "stderr").read_text()
    assert "presel: error: model (selection): process 1 of 2 was ended by signal 9" in told
    assert "the same command continues where it stopped" in told
    assert not workers_of(pool_folder)
    assert not list(pool_folder.glob("cut/model/*/adapter"))

    program.succeeds(*cut)
    assert_same_training(pool_folder / "cut", one)
    # It went on, instead of starting again.
    (second,) = pool_folder.glob("cut/model/*/metrics/version_1/metrics.csv")
    assert pd.read_csv(second)["step"].min() >= 3


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_the_run(pool_folder: Path, ending: signal.Signals) -> None:
    run = subprocess.Popen(
        command("run", *on_folder(pool_folder), *RECIPE, "tune.epochs=50", "trainer=ddp", *TWO),
        cwd=pool_folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Where the tests run in a shell's background, their children would ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while len(workers_of(pool_folder)) < 2:
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(ending)
    assert run.wait(timeout=60) == (-ending if ending == signal.SIGKILL else 128 + ending)
    # A process that is just starting up looks at its parent once Python runs.
    while workers_of(pool_folder):
        time.sleep(0.01)


def pool_workers_of(parent: int) -> list[int]:
    """The running worker processes of a process that checks images."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            # After the program's name, which may hold spaces, follow state and parent.
            _, above = (process / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            if int(above) == parent and b"multiprocessing.spawn" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


@pytest.mark.slow
def test_no_worker_outlives_a_killed_run_that_checks_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (1500, 1500)).save(tmp_path / "images" / "0.png")
    for number in range(1, 3000):
        (tmp_path / "images" / f"{number}.png").hardlink_to(tmp_path / "images" / "0.png")
    images = ("pool=image_folder", "pool.images=images", "pool.task=photo", "executor.workers=2")
    run = subprocess.Popen(
        command("run", *images, "strategy=random", "until=selection", "budget=9", OWN_STORE),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while len(workers := pool_workers_of(run.pid)) < 2:
        assert run.poll() is None
        time.sleep(0.01)
    # Long enough for them to be at work.
    time.sleep(5)
    assert run.poll() is None
    run.kill()
    run.wait()
    limit = time.monotonic() + 60
    while left := list(filter(is_running, workers)):
        assert time.monotonic() < limit, f"workers {left} outlive the run"
        time.sleep(0.05)


@pytest.mark.slow
def test_two_processes_score_and_encode_as_one(program: Program, in_process: Program, tmp_path: Path) -> None:
    # More than a shard of reference samples, of different images, and of questions.
    overrides = [
        *TINY,
        "pool.size=1100",
        "reference.share=0.6",
        "budget=0.7",
        "evaluation.size=60",
        OWN_STORE,
    ]
    overrides += ["tune.micro_batch_size=16"]
    in_process.succeeds("run", *overrides, "trainer=cpu")
    files = [
        *stage_files(tmp_path, "relevance", "relevance.parquet"),
        *stage_files(tmp_path, "features", "features.npy"),
        *stage_files(tmp_path, "evaluation", "predictions.parquet"),
    ]
    before = {file: file.read_bytes() for file in files}
    for file in files:
        shutil.rmtree(file.parent)
        # As where rank 0 had finished its share when the others were ended.
        (file.parent / "processes").mkdir(parents=True)
        (file.parent / "processes/result.json").write_text("{}")
    for stage in ("clusters", "centrality", "selection"):
        shutil.rmtree(tmp_path / "outputs" / "store" / stage)
    # The model is kept, so that only who asks for the selection computes what that rests on.
    for until in ("selection", "evaluation"):
        program.succeeds("run", *overrides, "trainer=ddp", *TWO, f"until={until}")
    assert {file: file.read_bytes() for file in files} == before
    for file in files:
        assert len(list((file.parent / "processes").glob("rank-*.log"))) == 2


@pytest.mark.slow
def test_two_nodes_of_a_slurm_job_train_as_one_process(
    program: Program, in_process: Program, pool_folder: Path
) -> None:
    """Both nodes are this machine: what stands for `srun` starts the command twice."""
    srun = pool_folder / "srun"
    srun.write_text(
        f"#!{sys.executable}\n"
        "import subprocess, sys\n"
        "words = sys.argv[1:]\n"
        "assert {'--nodes=2', '--ntasks=2', '--ntasks-per-node=1'} < set(words)\n"
        "command = words[words.index(sys.executable) :]\n"
        "both = [subprocess.Popen(command, stdin=stdin) for stdin in (None, subprocess.DEVNULL)]\n"
        "sys.exit(max(abs(one.wait()) for one in both))\n"
    )
    srun.chmod(0o755)
    # What Lightning would number processes by, and resume from.
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "PATH": f"{pool_folder}:{os.environ['PATH']}"}
    (pool_folder / "hpc_ckpt_1.ckpt").write_text("of another program")
    recipe = (*on_folder(pool_folder), *RECIPE, "trainer.accelerator=cpu")
    in_process.succeeds("run", *recipe, "trainer=cpu", "paths.store=one", **job)
    program.succeeds(
        *("run", *recipe, "trainer=ddp", "trainer.devices=1", "trainer.nodes=2", "paths.store=two"), **job
    )
    assert_same_training(pool_folder / "two", pool_folder / "one")


def test_the_process_that_failed_first_is_named_whatever_node_reports_first(tmp_path: Path) -> None:
    def reported(rank: int, second: int, code: int) -> str:
        return (
            "Root Cause (first observed failure):\n[0]:\n"
            f"  time      : 2026-01-02_03:04:{second:02}\n  host      : node\n"
            f"  rank      : {rank} (local_rank: 0)\n  exitcode  : {code} (pid: 5)\n"
        )

    log = tmp_path / "torchrun.log"
    for failures in ([(0, 8, 1), (5, 7, 1)], [(0, 7, 1), (5, 7, -9)]):
        log.write_text("".join(reported(*failure) for failure in failures))
        assert "process 5 of 8" in failure_message(log, 1, tmp_path, 8)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ("trainer=ddp", "trainer.devices=3"),
            "micro_batch_size=2 for 3 processes",
        ),
        (("trainer=ddp", "trainer.devices=2", "trainer.nodes=3"), "for 6 processes; set a multiple of 12"),
        (("trainer=ddp", "trainer.devices=0"), "trainer.devices"),
        (("trainer=ddp", "trainer.strategy=single", "trainer.devices=2"), "is one process on one node"),
        (("trainer=ddp", "trainer.nodes=2", "trainer.node_command=[]"), "needs a node_command"),
        (("trainer=deepspeed_zero3",), "DeepSpeed is not installed"),
        (("trainer=fsdp", "trainer.devices=2", "strategy=self_filter"), "set trainer=ddp"),
    ],
)
def test_what_cannot_be_spread_is_refused_before_any_work(
    in_process: Program, pool_folder: Path, overrides: tuple[str, ...], told: str
) -> None:
    result = in_process.refuses(
        "run", *on_folder(pool_folder), *RECIPE, "trainer.accelerator=cpu", *overrides, OWN_STORE
    )
    assert told in result
    assert not (pool_folder / "outputs" / "store").exists()
