"""Ray on this machine: the files of one process; faults end in one sentence, or are not noticed at all."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from presel.data.sources import LlavaJson
from presel.distributed.executors import RayExecutor
from presel.distributed.ray_driver import room_for
from presel.distributed.ray_session import connect, disconnect
from presel.distributed.ray_worker import Worker
from presel.distributed.runtime import Runtime
from presel.errors import PreselError
from presel.instructions.annotations import Annotations
from presel.models.encoder import Encoder
from presel.models.hardware import Hardware
from presel.models.lvlm import Lvlm
from presel.stages.features import FeaturesStage
from presel.stages.instructions import InstructionsStage
from presel.stages.pool import PoolStage
from presel.stages.reference import ReferenceStage
from presel.stages.relevance import RelevanceStage
from presel.storage.stage import Stage
from presel.storage.store import Store
from tests.helpers import Program, record
from tests.ray_work import Environment, Squares

# What a worker must not inherit: the last because nothing says that it is needed, others by their names.
SECRETS = {
    "OPENAI_API_KEY": "sk-1",
    "RAY_SECRET": "word",
    "RAY_PW": "word",
    "HF_PAT": "word",
    "CONDA_AUTH": "word",
    "XDG_PASSWD": "word",
    "DATABASE_URL": "https://me:word@host",
}


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """Ray is started by the first test that needs it, and ends with the last."""
    os.environ |= SECRETS
    yield
    disconnect()
    for name in SECRETS:
        del os.environ[name]


def on_ray(tmp_path: Path, **settings: Any) -> Store:
    """A store whose shards two actors compute."""
    return Store(tmp_path / "ray", executor=RayExecutor(**{"workers": 0, "actors": 2} | settings))


def computed(folder: Path) -> Counter[int]:
    """How many times each number of a `Squares` was begun."""
    return Counter(map(int, (folder / "computed").read_text().split()))


def squares(store: Store, work: Squares) -> tuple[list[int], Counter[int]]:
    """The squares, and how many times each was begun."""
    folder = store.root / "work"
    folder.mkdir(parents=True)
    found = store.executor.compute(work, store, folder).joined()
    return found["square"].tolist(), computed(folder)


@pytest.mark.slow
def test_pool_features_and_relevance_have_the_bytes_of_one_process(pool_folder: Path) -> None:
    generator = np.random.default_rng(1)
    # More than one shard of different images.
    for number in range(60, 600):
        pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pool_folder / "images" / f"{number:04}.png")
    (pool_folder / "images" / "0003.png").write_bytes(b"broken")
    (pool_folder / "pool.json").write_text(json.dumps([record(number) for number in range(600)]))
    runtime = Runtime(hardware=Hardware(accelerator="cpu"))
    source = LlavaJson(
        annotations=pool_folder / "pool.json", images=pool_folder / "images", max_rejected_share=0.5
    )
    pool = PoolStage(source=source, workers=0)
    instructions = InstructionsStage(
        pool=pool, chosen=ReferenceStage(pool=pool, share=0.1, seed=0), provider=Annotations(), purpose="all"
    )
    stages: list[Stage[Any]] = [
        FeaturesStage(pool=pool, encoder=Encoder(path="builtin:digit_dinov2"), runtime=runtime),
        RelevanceStage(instructions=instructions, model=Lvlm(path="builtin:digit_llava"), runtime=runtime),
    ]
    here, there = Store(pool_folder / "here"), on_ray(pool_folder)
    for stage in stages:
        here.ensure(stage)
        there.ensure(stage)
    results = [path.relative_to(here.root) for path in here.root.rglob("*.npy")]
    results += [path.relative_to(here.root) for path in here.root.rglob("*.parquet")]
    shards = [path for path in results if path.parent.name == "shards"]
    assert {path.parts[0] for path in shards} == {"pool", "features", "relevance"}
    assert len(shards) > 3
    for path in results:
        assert (here.root / path).read_bytes() == (there.root / path).read_bytes(), path
    # What is sent to workers holds no instruction; they read those that are bought in the store.
    sent = list(there.root.rglob("task.pickle"))
    assert len(sent) == 3
    assert not any(b"How many things" in file.read_bytes() for file in sent)


def test_workers_inherit_no_secrets(tmp_path: Path) -> None:
    disconnect()
    before = dict(os.environ)
    store = on_ray(tmp_path)
    names = set(store.executor.compute(Environment(), store, tmp_path / "work").joined()["name"])
    assert names & {"PATH", *SECRETS} == {"PATH"}
    # Nor does the start of Ray change what this process's other children get.
    assert dict(os.environ) == before


def test_a_worker_that_ends_costs_the_shard_that_it_was_at(tmp_path: Path) -> None:
    found, times = squares(on_ray(tmp_path), Squares(count=21, ends={9: 2}))
    assert found == [number**2 for number in range(21)]
    # Shard 4 holds 8 and 9.
    assert {number: count for number, count in times.items() if count > 1} == {8: 3, 9: 3}


@pytest.mark.parametrize("fault", ["ends", "errors"])
def test_a_shard_that_ends_every_worker_is_named(
    tmp_path: Path, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    work = Squares(count=7, ends={3: 9}) if fault == "ends" else Squares(count=7, errors=[3])
    with pytest.raises(PreselError) as caught:
        squares(on_ray(tmp_path, attempts=2), work)
    told = str(caught.value)
    assert told.startswith("squaring: shard 1 ended 2 workers, the last one by: ")
    assert ("unexpectedly" if fault == "ends" else "RuntimeError: no square of 3") in told
    assert "its 2 items (number 2, number 3) are listed in" in told
    listed = tmp_path / "ray" / "work" / "processes" / "shard-00001.txt"
    assert listed.read_text() == "number 2\nnumber 3\n"
    # The same command goes on, once that is repaired.
    store = on_ray(tmp_path)
    store.executor.compute(Squares(count=7), store, store.root / "work")
    assert computed(store.root / "work")[0] == 1
    # Nor does Ray tell what became of its processes.
    assert "raylet" not in "".join(capfd.readouterr())


def test_a_mistake_of_the_user_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(PreselError, match=r"^number 3 is odd; leave it out$"):
        squares(on_ray(tmp_path), Squares(count=4, mistakes=[3]))
    assert computed(tmp_path / "ray" / "work")[3] == 1


def test_workers_that_never_open_their_work_end_the_run(tmp_path: Path) -> None:
    told = r"^executor=ray: 2 workers ended while they started on node [\d.]+, the last one by: .*squares"
    with pytest.raises(PreselError, match=told):
        squares(on_ray(tmp_path, attempts=2), Squares(count=4, opens=False))


def test_a_full_disk_is_no_fault_of_the_images(tmp_path: Path) -> None:
    with pytest.raises(PreselError, match=rf"^squaring on node [\d.]+: cannot write to {tmp_path}/ray \("):
        squares(on_ray(tmp_path), Squares(count=4, full=[3]))
    assert computed(tmp_path / "ray" / "work")[3] == 1


@pytest.mark.parametrize(
    ("needs", "room"),
    [({"CPU": 0.1}, 60), ({"CPU": 1, "GPU": 0.1}, 3), ({"CPU": 3, "GPU": 0.1}, 1), ({"memory": 1.0}, 0)],
)
def test_room_is_counted_node_by_node(needs: dict[str, float], room: int) -> None:
    assert room_for(needs, [{"CPU": 2}, {"CPU": 4, "GPU": 0.3}]) == room


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU here tells what the cluster's support")
def test_the_precision_of_gpus_that_are_elsewhere_must_be_set(tmp_path: Path, pool: PoolStage) -> None:
    store, encoder = on_ray(tmp_path), Encoder(path="builtin:digit_dinov2")
    for precision, told in {"auto": "no GPU to decide it by", "32-true": None}.items():
        runtime = Runtime(hardware=Hardware(accelerator="gpu", precision=precision))
        stage = FeaturesStage(pool=pool, encoder=encoder, runtime=runtime)
        with pytest.raises(PreselError, match=told) if told else nullcontext():
            stage.check(store)


def test_a_node_that_does_not_see_the_store_says_so(tmp_path: Path) -> None:
    fault = Worker(tmp_path / "absent", tmp_path).open().fault
    assert fault is not None
    assert f"does not see {tmp_path}/absent; the store, the images and the folder" in fault


def test_room_that_there_is_not_is_reported_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(PreselError) as caught:
        squares(on_ray(tmp_path, cpus=4096, memory_gb=2.5), Squares(count=2))
    told = str(caught.value)
    assert told.startswith("executor=ray: no node is large enough: each worker asks for 4096 CPU, 2.5 GB; ")
    assert " CPU, " in told.partition("the cluster has ")[2]


def test_an_address_without_a_cluster_is_refused(tmp_path: Path) -> None:
    # Not the Ray that there is already.
    connect(None)
    with pytest.raises(PreselError, match=r"executor\.address=127\.0\.0\.1:9: Ray cannot be reached there"):
        squares(on_ray(tmp_path, address="127.0.0.1:9"), Squares(count=2))


def test_without_the_package_one_sentence_says_so(
    in_process: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    told = in_process.refuses("run", "executor=ray")
    assert told.endswith("executor=ray needs the package ray; pip install '.[ray]' in the clone")
