"""Campaign: model servers that are hostile; nothing paid for is lost, and no key, memory or time either."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.campaigns.hostile_server import KEY, behaviors
from tests.campaigns.pipeline import stored_images
from tests.campaigns.program import Ended, presel

_IMAGES = 12
_SETTINGS = (
    "pool.size=40", "strategy=random", f"budget={_IMAGES}", "executor.workers=0", "instructions=openai",
    "instructions.model=seer", "instructions.key_variable=CAMPAIGN_KEY", "instructions.concurrency=2",
    "instructions.timeout_s=1", "instructions.max_retries=1", "instructions.backoff_s=0.1",
    "instructions.max_retry_after_s=2",
)  # fmt: skip
# Twelve images, two at a time, each twice for a second; ten seconds for the list of models; a busy machine.
_DEADLINE_S = 90
_MOST_MB = 500


class Hostile(NamedTuple):
    """What one hostile server did.

    Attributes:
        name: How it behaves.
        code: What the run ended with.
        seconds: How long it took.
        peak_mb: The memory it took.
        faults: What went wrong, in words.
    """

    name: str
    code: int
    seconds: float
    peak_mb: float
    faults: list[str]


def prepare(folder: Path) -> None:
    """Chooses the images, once for all servers."""
    assert presel(folder, "run", *_SETTINGS, "until=selection").code == 0


def drawn(count: int, seed: int) -> list[str]:
    """So many behaviors, as parts of an address; hostile to half of the images, or to all."""
    numbers = range(len(behaviors()))
    every = [f"{to}{number}" for number in numbers for to in ("", "all-")]
    return random.Random(seed).sample(every, min(count, len(every)))


def hostile(path: str, prepared: Path, out: Path) -> Hostile:
    """Asks a hostile server, then an honest one.

    Args:
        path: Its behavior, as `drawn` names it.
        prepared: Folder with the chosen images.
        out: Where the trial's files go; deleted if all is well.
    """
    folder = out / f"hostile-{path}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prepared / "outputs", folder / "outputs")
    with _serving(folder) as (url, log):
        first = _instructions(folder, f"{url}/{path}/v1", "instructions.max_unanswered_share=0.25")
        faults = first.faults(0, 2)
        if first.peak_mb > _MOST_MB:
            faults.append(f"{first.peak_mb:.0f} MB")
        answered = {one["image"] for one in _seen(log) if one["honest"] and one["image"]}
        if lost := answered - stored_images(folder):
            faults.append(f"{len(lost)} answers lost")
        asked = len(_seen(log))
        # Malformed answers are asked for again, refused images left out.
        second = _instructions(
            folder,
            f"{url}/honest/v1",
            "instructions.attempts=5",
            "instructions.max_unanswered_share=1",
        )
        faults += [f"honest server: {fault}" for fault in second.faults(0)]
        if repeated := [one for one in _seen(log)[asked:] if one["image"] in answered]:
            faults.append(f"{len(repeated)} requests repeated")
        if any(one["name"] == "stolen" or one["cookie"] for one in _seen(log)):
            faults.append("a redirect was followed or a cookie returned")
    texts = [first.output, second.output, *(_text(file) for file in folder.rglob("*") if file.is_file())]
    if any(KEY in text for text in texts):
        faults.append("the key was written down")
    if not faults:
        shutil.rmtree(folder)
    to, number = ("all, ", path[4:]) if path.startswith("all-") else ("", path)
    name = to + list(behaviors())[int(number)]
    return Hostile(name, first.code, round(first.seconds, 1), round(first.peak_mb), faults)


def _instructions(folder: Path, url: str, *settings: str) -> Ended:
    return presel(
        folder,
        "run",
        *_SETTINGS,
        "until=instructions",
        f"instructions.base_url={url}",
        *settings,
        deadline_s=_DEADLINE_S,
        CAMPAIGN_KEY=KEY,
    )


@contextmanager
def _serving(folder: Path) -> Iterator[tuple[str, Path]]:
    log = folder.with_suffix(".requests")
    log.touch()
    command = [sys.executable, "-m", "tests.campaigns.hostile_server", str(log)]
    root = Path(__file__).parent.parent.parent
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}", log
        finally:
            process.kill()


def _seen(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def _text(file: Path) -> str:
    return file.read_bytes().decode("latin-1")
