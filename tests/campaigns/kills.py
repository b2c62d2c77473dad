"""Campaign: `kill -9` at random moments of every stage, until the run has got through all the same."""

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.campaigns.pipeline import arguments, differences, finish, serving, stored_images
from tests.campaigns.program import Run

# Between two kills of a lap the run gets a little further.
KILLS_PER_LAP = 15
_START_S = 60


class Lap(NamedTuple):
    """What the kills of one pipeline did.

    Attributes:
        by_stage: Kills by the stage that was running.
        requests: Requests that the server got.
        repeated: Requests about images whose answer was stored already.
        faults: What went wrong, in words.
    """

    by_stage: Counter[str]
    requests: int
    repeated: int
    faults: list[str]


def lap(number: int, seed: int, timeline: dict[str, tuple[str, float]], reference: Path, out: Path) -> Lap:
    """Kills one pipeline again and again, lets it finish, and compares its results.

    Args:
        number: Number of the lap.
        seed: Decides the moments.
        timeline: Of each stage the run's last step and the stage's seconds.
        reference: Store of a run that nobody killed.
        out: Where the lap's files go; deleted if all is well.
    """
    folder = out / f"kills-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    by_stage: Counter[str] = Counter()
    faults = []
    repeated = 0
    with serving(folder / "server") as server:
        for stage, delay in _moments(timeline, random.Random(f"{seed} {number}")):
            stored, asked = stored_images(folder), len(server.seen())
            run = Run(folder, *arguments(server, timeline[stage][0]))
            for _ in run.polls(_START_S):
                if f"… {stage}\n" in run.output() or f"✓ {stage} " in run.output():
                    break
            for _ in run.polls(delay):
                pass
            if run.over():
                faults += run.end(0).faults(0)
            else:
                output = run.kill().output
                by_stage[_running(output)] += 1
                faults += ["traceback"] * ("Traceback" in output)
            repeated += sum(one.image in stored for one in server.seen()[asked:])
        stored, asked = stored_images(folder), len(server.seen())
        for ended in finish(folder, server):
            faults += ended.faults(0)
        repeated += sum(one.image in stored for one in server.seen()[asked:])
        requests = len(server.seen())
    faults += differences(folder / "outputs/store", reference)
    if repeated:
        faults.append(f"{repeated} requests repeated")
    if not faults:
        shutil.rmtree(folder)
    return Lap(by_stage, requests, repeated, faults)


def _moments(timeline: dict[str, tuple[str, float]], draw: random.Random) -> list[tuple[str, float]]:
    """When a lap's kills come: in which stage, and how many seconds after it began; in the stages' order.

    Half of them are drawn by time, half by stage, so that short stages are met as well.
    """
    stages = list(timeline)
    by_time = draw.choices(stages, [seconds for _, seconds in timeline.values()], k=KILLS_PER_LAP // 2)
    by_stage = draw.choices(stages, k=KILLS_PER_LAP - KILLS_PER_LAP // 2)
    return [
        (stage, draw.uniform(0, timeline[stage][1])) for stage in sorted(by_time + by_stage, key=stages.index)
    ]


def _running(output: str) -> str:
    """The stage that was running, by what a run had printed."""
    started = [line[2:] for line in output.splitlines() if line.startswith("… ")]
    finished = {" ".join(line[2:].split()[:-3]) for line in output.splitlines() if line.startswith("✓")}
    return started[-1] if started and started[-1] not in finished else "between stages"
