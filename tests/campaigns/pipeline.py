"""The small but complete pipeline that is killed and damaged, and how two stores compare."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from presel.storage.files import write_json
from tests.campaigns.program import Ended, presel
from tests.generation_server import Plan, Running, running

# Every stage in seconds: checkpoints after each step, several shards of answers.
SETTINGS = (
    "pool.size=200", "reference.share=0.1", "budget=0.25", "evaluation.size=2", "evaluation.max_new_tokens=4",
    "executor.workers=0", "trainer=cpu", "tune.batch_size=4", "tune.micro_batch_size=4",
    "tune.checkpoint_steps=1", "instructions=openai", "instructions.model=seer",
    "instructions.key_variable=null", "instructions.concurrency=4",
)  # fmt: skip
# The last steps; what they rest on is shared.
ENDS = ("evaluation", "merged")
# What differs from run to run: how long the parts took, and so the manifest's own digest.
_TIMES = ("finished", "wall_seconds", "peak_memory_mb", "measured", "git_commit", "sha256")


@contextmanager
def serving(folder: Path) -> Iterator[Running]:
    """A model server that answers after a twentieth of a second and writes down what it is asked."""
    folder.mkdir(parents=True, exist_ok=True)
    with running(folder, Plan(latency=0.05)) as server:
        yield server


def arguments(server: Running, end: str) -> tuple[str, ...]:
    """Arguments of the run that ends with a step."""
    return ("run", *SETTINGS, f"instructions.base_url={server.url}", f"until={end}")


def finish(folder: Path, server: Running) -> list[Ended]:
    """Runs the pipeline to its ends."""
    return [presel(folder, *arguments(server, end)) for end in ENDS]


def make_reference(folder: Path) -> None:
    """Runs the pipeline undisturbed, and writes down the seconds of its stages as `timeline.json`."""
    with serving(folder / "server") as server:
        runs = finish(folder, server)
    for run in runs:
        if run.code:
            raise RuntimeError(run.output)
    write_json(folder / "timeline.json", stage_seconds(runs))


def stage_seconds(runs: list[Ended]) -> dict[str, tuple[str, float]]:
    """For each stage the step that ends the run which computed it, and its seconds."""
    found: dict[str, tuple[str, float]] = {}
    for end, run in zip(ENDS, runs, strict=True):
        for label, seconds in re.findall(r"^✓ (.+?) +([\d.]+) s  [0-9a-f]+$", run.output, re.MULTILINE):
            found[label] = (end, float(seconds))
    return found


def stored_images(folder: Path) -> set[str]:
    """Digests of the images whose answers are in the file of answers."""
    file = folder / "outputs/answers/answers.jsonl"
    if not file.exists():
        return set()
    whole = file.read_text(encoding="utf-8").rpartition("\n")[0]
    return set(re.findall(r"It is ([0-9a-f]{16})\.", whole))


def differences(store: Path, other: Path) -> list[str]:
    """Files that are in one of two stores only, or differ.

    Left out are locks, the training log (which tells each start) and times in manifests.
    """
    ours, theirs = _files(store), _files(other)
    found = [f"only in one: {name}" for name in sorted(ours ^ theirs)]
    for name in sorted(ours & theirs):
        if _content(store / name) != _content(other / name):
            found.append(f"differs: {name}")
    return found


def _files(store: Path) -> set[str]:
    names = (str(file.relative_to(store)) for file in store.rglob("*") if file.is_file())
    return {name for name in names if not name.endswith(".lock") and "/metrics/" not in name}


def _content(file: Path) -> Any:
    if file.name != "manifest.json":
        return file.read_bytes()
    manifest = json.loads(file.read_bytes())
    return {key: value for key, value in manifest.items() if key not in _TIMES}
