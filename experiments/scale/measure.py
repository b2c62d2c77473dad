"""Selection of a drawn pool, out of core: time, peak memory and disk by size; see README.md."""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.scale.drawn import DrawnFeatures, DrawnPool, DrawnRelevance
from presel.stages.centrality import CentralityStage, Neighbors
from presel.stages.clusters import Clustering, ClustersStage
from presel.stages.reference import ReferenceStage
from presel.stages.selection import SelectionStage
from presel.storage.stage import Stage
from presel.storage.store import Store
from presel.strategies.presel import PreSel

Row = dict[str, Any]
_POLL_SECONDS = 0.05


class Memory:
    """The most memory that this process and its children take, in GB, polled while stages run."""

    def __init__(self) -> None:
        self.anonymous = self.resident = 0.0
        threading.Thread(target=self._poll, daemon=True).start()

    def reset(self) -> None:
        self.anonymous = self.resident = 0.0

    def _poll(self) -> None:
        while True:
            anonymous = mapped = 0
            for process in [os.getpid()]:
                for line in Path(f"/proc/{process}/status").read_text().splitlines():
                    name, _, value = line.partition(":")
                    if name == "RssAnon":
                        anonymous += int(value.split()[0])
                    elif name in ("RssFile", "RssShmem"):
                        mapped += int(value.split()[0])
            self.anonymous = max(self.anonymous, anonymous / 1e6)
            self.resident = max(self.resident, (anonymous + mapped) / 1e6)
            time.sleep(_POLL_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/scale/store"))
    o = parser.parse_args()
    store = Store(o.folder)
    pool = DrawnPool(n_images=o.images, n_tasks=o.tasks)
    features = DrawnFeatures(pool=pool)
    reference = ReferenceStage(pool=pool, share=0.05, seed=0)
    relevance = DrawnRelevance(pool=pool, reference=reference)
    clusters = ClustersStage(features=features, clustering=Clustering())
    centrality = CentralityStage(clusters=clusters, reference=reference, neighbors=Neighbors())
    selection = SelectionStage(
        strategy=PreSel(),
        pool=pool,
        budget=0.15,
        seed=0,
        needed={"reference": reference, "relevance": relevance, "centrality": centrality},
    )
    memory = Memory()
    for stage in (pool, features, reference, relevance, clusters, centrality, selection):
        memory.reset()
        t = time.time()
        c = sum(os.times()[:4])
        store.ensure(stage)
        print(
            f"{stage.name:12} {time.time() - t:8.1f}s cpu {sum(os.times()[:4]) - c:8.1f} anon {memory.anonymous:.2f} rss {memory.resident:.2f}",
            flush=True,
        )


main()
