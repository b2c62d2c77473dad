"""Ray on several nodes, started by others, and killed: the results are those of one process all the same."""

import json
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ray.cluster_utils import Cluster

from presel.data.sources import LlavaJson
from presel.distributed.executors import RayExecutor
from presel.distributed.ray_session import connect, disconnect
from presel.distributed.runtime import Runtime
from presel.errors import PreselError
from presel.models.encoder import Encoder
from presel.models.hardware import Hardware
from presel.stages.features import FeaturesStage
from presel.stages.pool import PoolStage
from presel.storage.integrity import read_manifest, result_files
from presel.storage.store import Store
from tests.helpers import OWN_STORE, TINY, Program, command, environment, last_run, record
from tests.ray_work import Squares

pytestmark = pytest.mark.slow

# The smallest object store: nothing large passes through it.
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
IMAGES = 3000
# Ray gives up early where the machine is busy.
PATIENT = {"RAY_gcs_server_port_wait_time_s": "300", "RAY_worker_register_timeout_seconds": "600"}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray waits longer for its own processes."""
    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def three_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of three nodes with a processor each, after this process had Ray to itself."""
    connect(None)
    disconnect()
    # Otherwise workers would wait for everything else that runs on the machine.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(**NODE)
        yield cluster
    finally:
        disconnect()
        cluster.shutdown()


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A folder with `pool.json` and images enough for six shards."""
    generator = np.random.default_rng(2)
    (tmp_path / "images").mkdir()
    for number in range(IMAGES):
        pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number:04}.png")
    (tmp_path / "pool.json").write_text(json.dumps([record(number) for number in range(IMAGES)]))
    return tmp_path


def features_of(folder: Path) -> FeaturesStage:
    source = LlavaJson(annotations=folder / "pool.json", images=folder / "images")
    runtime = Runtime(hardware=Hardware(accelerator="cpu"))
    pool = PoolStage(source=source, workers=0)
    return FeaturesStage(pool=pool, encoder=Encoder(path="builtin:digit_dinov2"), runtime=runtime)


def written(store: Path) -> dict[Path, int]:
    """The shards of features that are written, with the times when."""
    return {file: file.stat().st_mtime_ns for file in store.glob("features/*/shards/*.npy")}


def wait_for_shards(store: Path, count: int, process: subprocess.Popen[str] | None = None) -> dict[Path, int]:
    """Waits until so many are written, by a process that must not end before."""
    while len(found := written(store)) < count:
        assert process is None or process.poll() is None
        time.sleep(0.01)
    return found


def wait_for_end_of(session: str) -> None:
    """Waits until no process is left whose command line names a session of Ray."""
    while any(session in words for words in map(command_line, Path("/proc").glob("[0-9]*"))):
        time.sleep(0.1)


def answers(port: int) -> bool:
    with socket.socket() as connection:
        return not connection.connect_ex(("127.0.0.1", port))


def command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_node_that_is_removed_costs_its_shard_alone(noise: Path, three_nodes: Cluster) -> None:
    stage = features_of(noise)
    expected = Store(noise / "one").load(stage).array
    store = Store(noise / "three", executor=RayExecutor(address=three_nodes.address, workers=0))
    seen: dict[Path, int] = {}
    computed = threading.Event()

    def remove_a_node() -> None:
        seen.update(wait_for_shards(store.root, 1))
        three_nodes.remove_node(three_nodes.list_all_nodes()[-1], allow_graceful=False)
        while not computed.wait(0.01):
            seen.update(written(store.root) | seen)

    # Ends with the tests if the features cannot be computed.
    removal = threading.Thread(target=remove_a_node, daemon=True)
    removal.start()
    found = store.load(stage).array
    computed.set()
    removal.join()
    assert found.tobytes() == expected.tobytes()
    # Nothing that was written once is written again.
    after = written(store.root)
    assert len(after) == 6
    assert seen.items() <= after.items()


def test_no_room_is_reported_within_a_minute(tmp_path: Path, three_nodes: Cluster) -> None:
    store = Store(tmp_path, executor=RayExecutor(address=three_nodes.address, cpus=2))
    with pytest.raises(PreselError) as caught:
        store.executor.compute(Squares(count=2), store, tmp_path / "work")
    assert "each worker asks for 2 CPU; the cluster has 3 CPU, " in str(caught.value)


def test_a_shard_that_ends_workers_on_every_node_is_named(tmp_path: Path, three_nodes: Cluster) -> None:
    executor = RayExecutor(address=three_nodes.address, workers=0, attempts=2)
    store = Store(tmp_path, executor=executor)
    (tmp_path / "work").mkdir()
    with pytest.raises(PreselError, match=r"^squaring: shard 4 ended 2 workers, .*\(number 8, number 9\)"):
        store.executor.compute(Squares(count=21, ends={9: 9}), store, tmp_path / "work")


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_ends_leaves_no_process_and_goes_on(
    program: Program, noise: Path, ending: signal.Signals
) -> None:
    pool = ("pool=llava_json", f"pool.annotations={noise}/pool.json", f"pool.images={noise}/images")
    run = ("run", *pool, "strategy=typiclust", "budget=30", "until=selection", "trainer=cpu", OWN_STORE)
    ray = ("executor=ray", "executor.actors=2", "executor.workers=0")
    store = noise / "outputs" / "store"
    process = subprocess.Popen(
        command(*run, *ray),
        cwd=noise,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in a shell's background, their children would ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        before = wait_for_shards(store, 2, process)
        process.send_signal(ending)
        _, told = process.communicate()
    finally:
        process.kill()
    if ending == signal.SIGINT:
        assert process.returncode == 128 + ending
        assert told == "presel: interrupted; the same command continues where it stopped\n"
    # Ray's sessions are named by the process that starts them.
    wait_for_end_of(f"_{process.pid}/")
    result = program.succeeds(*run, *ray)
    assert not result.stderr
    assert before.items() <= written(store).items()
    expected = Store(noise / "one").load(features_of(noise)).array
    assert Store(store).load(features_of(noise)).array.tobytes() == expected.tobytes()


def test_a_whole_run_on_a_cluster_of_others(program: Program, in_process: Program, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    start += ["--num-cpus=2", f"--object-store-memory={NODE['object_store_memory']}"]
    # Ray sends the token in the user's home only to clusters that it finds itself.
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex()}
    started = subprocess.Popen(
        [*start, "--include-dashboard=false", "--disable-usage-stats"],
        env=environment(**access),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        run = ("run", *TINY, "strategy=presel", "trainer=cpu")
        ray = ("executor=ray", f"executor.address=127.0.0.1:{port}", OWN_STORE)
        while not answers(port):
            assert started.poll() is None
            time.sleep(0.1)
        result = program.succeeds(*run, *ray, **access)
        assert not result.stderr
        there = last_run(tmp_path).stages
        program.succeeds("doctor", *TINY, *ray, **access)
        assert started.poll() is None
    finally:
        started.terminate()
        started.wait()
    in_process.succeeds(*run)
    for role, stage in last_run(tmp_path).stages.items():
        assert stage.key == there[role].key
        if not read_manifest(stage.folder)["stage"].startswith(("model", "scenes")):
            ours, theirs = (dict(result_files(folder)) for folder in (stage.folder, there[role].folder))
            assert ours.keys() == theirs.keys()
            for name, file in ours.items():
                assert file.read_bytes() == theirs[name].read_bytes(), (role, name)
