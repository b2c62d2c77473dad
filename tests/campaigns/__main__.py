"""`python -m tests.campaigns --kills 200 --damage 60 --hostile 100 --inputs 100`; a part left out is not run.

Trials are drawn from a seed. Each writes a line into `<out>/<part>.jsonl` when it ends, and is not tried
again when the same command is given once more. The files of a trial that found something wrong stay in
`<out>`. The summary is printed as the rows of docs/concepts/reliability.md.
"""

import argparse
import json
import math
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

# Before torch is imported, here and in the workers.
os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
# Killed runs leave semaphores to the tracker, which would say so.
os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"

from tests.campaigns import damage, hostile, inputs, kills, pipeline, program

Result = dict[str, Any]


def main() -> int:
    """Runs the parts that are asked for; 1 if one of them found something wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns", description=__doc__)
    for part in ("kills", "damage", "hostile", "inputs"):
        parser.add_argument(f"--{part}", type=int, default=0, metavar="N", help="how many (default: none)")
    parser.add_argument("--seed", type=int, default=0, help="decides what is drawn (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/campaigns"), help="folder (default: %(default)s)"
    )
    options = parser.parse_args()
    out = (options.out / f"seed-{options.seed}").absolute()
    out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    rows, wrong = [], 0
    with ProcessPoolExecutor(options.workers, context, initializer=program.preload) as pool:
        campaign = Campaign(pool, out, options.seed)
        for part, count in (
            (campaign.kills, options.kills),
            (campaign.damage, options.damage),
            (campaign.hostile, options.hostile),
            (campaign.inputs, options.inputs),
        ):
            if count:
                row, faults = part(count)
                rows.append(row)
                wrong += faults
    print("\n| campaign | trials | passed | observed |\n| --- | --- | --- | --- |", *rows, sep="\n")
    return 1 if wrong else 0


class Campaign:
    """All parts, on one pool of workers."""

    def __init__(self, pool: ProcessPoolExecutor, out: Path, seed: int) -> None:
        """Runs nothing yet.

        Args:
            pool: Workers that have imported the program.
            out: Where results go.
            seed: Decides what is drawn.
        """
        self._pool, self._out, self._seed = pool, out, seed

    def kills(self, count: int) -> tuple[str, int]:
        """Kills runs at random moments, lap by lap, until there were enough kills."""
        reference = self._reference()
        timeline = json.loads((reference / "timeline.json").read_text())
        results: list[Result] = []
        killed = 0
        while killed < count:
            laps = len(results) + math.ceil((count - killed) / kills.KILLS_PER_LAP)
            results = self._run(
                "kills",
                range(laps),
                lambda lap: (kills.lap, lap, self._seed, timeline, reference / "outputs/store", self._out),
            )
            by_stage = sum((Counter(one["by_stage"]) for one in results), Counter[str]())
            killed = by_stage.total()
        for stage in [*timeline, "between stages"]:
            print(f"| {stage} | {by_stage[stage]} |")
        requests = sum(one["requests"] for one in results)
        repeated = sum(one["repeated"] for one in results)
        held = sum(sum(one["by_stage"].values()) for one in results if not one["faults"])
        seen = (
            f"{len(results)} pipelines of {len(timeline)} stages, each killed again and again and then "
            f"finished; {requests} requests, {repeated} of them about an image whose answer was stored"
        )
        return _row("`kill -9` at a random moment", killed, held, seen), _wrong(results)

    def damage(self, count: int) -> tuple[str, int]:
        """Damages one file of a finished store at a time."""
        reference = self._reference()
        results = self._run(
            "damage", range(count), lambda number: (damage.damage, number, self._seed, reference, self._out)
        )
        stages = len({one["file"].split("/")[0] for one in results})
        refused = sum(one["refused"] > 0 for one in results)
        seen = f"files of {stages} kinds of stages, {refused} of which stopped the next run with one sentence"
        return _row(
            "damaged result (bit flipped, cut, emptied, deleted)", count, _held(results), seen
        ), _wrong(results)

    def hostile(self, count: int) -> tuple[str, int]:
        """Asks hostile servers."""
        prepared = self._out / "chosen"
        if not prepared.exists():
            self._pool.submit(hostile.prepare, self._out / "choosing").result()
            (self._out / "choosing").rename(prepared)
        paths = hostile.drawn(count, self._seed)
        results = self._run("hostile", paths, lambda path: (hostile.hostile, path, prepared, self._out))
        stopped = sum(one["code"] == 2 for one in results)
        seen = (
            f"{stopped} runs ended with one sentence, {len(results) - stopped} with a result; longest "
            f"{max(one['seconds'] for one in results):.0f} s, most memory "
            f"{max(one['peak_mb'] for one in results)} MB"
        )
        return _row("hostile server", len(results), _held(results), seen), _wrong(results)

    def inputs(self, count: int) -> tuple[str, int]:
        """Runs on bad inputs."""
        results = self._run(
            "inputs", range(count), lambda number: (inputs.bad_input, number, self._seed, self._out)
        )
        codes = Counter(one["code"] for one in results)
        seen = (
            f"{codes[2]} refused with one sentence, {codes[1]} told by the doctor, {codes[3]} paused, "
            f"{codes[0]} harmless"
        )
        return _row("bad input", len(results), _held(results), seen), _wrong(results)

    def _reference(self) -> Path:
        """Folder of a pipeline that nobody killed, with the seconds of its stages."""
        folder = self._out / "reference"
        if not folder.exists():
            unfinished = self._out / "unfinished-reference"
            shutil.rmtree(unfinished, ignore_errors=True)
            self._pool.submit(pipeline.make_reference, unfinished).result()
            unfinished.rename(folder)
        return folder

    def _run(
        self, part: str, trials: Iterable[int | str], task: Callable[[Any], tuple[Any, ...]]
    ) -> list[Result]:
        """Runs the trials that have no result yet; returns the results of all."""
        trials = list(trials)
        file = self._out / f"{part}.jsonl"
        done = (
            {one["trial"]: one for one in map(json.loads, file.read_text().splitlines())}
            if file.exists()
            else {}
        )
        waiting = {}
        for trial in trials:
            if trial not in done:
                function, *arguments = task(trial)
                waiting[self._pool.submit(function, *arguments)] = trial
        for future in as_completed(waiting):
            result = {"trial": waiting[future], **future.result()._asdict()}
            done[result["trial"]] = result
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(result) + "\n")
            what = "held" if not result["faults"] else f"WRONG: {'; '.join(result['faults'])}"
            print(f"{part} {result['trial']} ({len(done)} done): {what}", flush=True)
        return [done[trial] for trial in trials]


def _held(results: list[Result]) -> int:
    return sum(not one["faults"] for one in results)


def _wrong(results: list[Result]) -> int:
    return len(results) - _held(results)


def _row(what: str, tried: int, held: int, seen: str) -> str:
    return f"| {what} | {tried} | {held} | {seen} |"


if __name__ == "__main__":
    raise SystemExit(main())
