"""`presel doctor`: checks a pool, and estimates time and cost of a run on it."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import OmegaConf

from presel.console import ArgumentParser, ConsoleReporter, console
from presel.console.terminal import print_text
from presel.doctor.diagnosis import Diagnosis, diagnose
from presel.doctor.page import write_page
from presel.doctor.printing import as_json, print_diagnosis
from presel.errors import PreselError
from presel.evaluation.benchmarks import Benchmarks
from presel.settings.compose import composed
from presel.settings.errors import MISTAKES, explain
from presel.settings.overrides import quoted_value
from presel.settings.schema import build
from presel.storage.files import write_json
from presel.storage.store import Store

_DESCRIPTION = """\
Check a pool before anything is spent on it. Takes the settings of `presel run` and reports what that run
would find: images and sizes of each task, unusable records and images, duplicates and near-duplicates, tasks
too small for the budget, the time of each stage, and the cost of the instructions. It lists all faults, not
only the first. It sends no request and leaves the pool as it is. Unpacked archives stay in the store, as in
a run; after an interruption, the same command continues with the images not yet examined."""

_EPILOG = """\
examples:
  presel doctor                                        the built-in pool
  presel doctor pool=llava_json pool.annotations=pool.json pool.images=images
  presel doctor experiment=realpool pool.annotations=pool.json pool.images=images budget=500 --html found.html

severities:
  fault    the run stops, or leaves the image out: a record without an answer, a truncated image, a budget
           below the reference set …
  warning  the run continues, but quality or cost may suffer: duplicates, near-duplicates, blank and tiny
           images, small tasks, images that are also in a benchmark …
  note     for information: images without a record, file names with the wrong suffix, EXIF rotation …

Near-duplicates are the same picture with another encoding, scale, brightness or crop, found by comparing
16 × 16 thumbnails; pool.near_duplicates=keep_one leaves all but one of each group out, pool.exclude=FILE any
others. Times are estimated from earlier runs in the store; stages that never ran are listed without one.

exit codes: 0 no fault, 1 faults, 2 a mistake in the command or files that cannot be read"""


def main(arguments: Sequence[str]) -> int:
    """Runs `presel doctor`; returns 1 if faults were found."""
    parser = ArgumentParser(
        prog="presel doctor",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", help="settings, as for `presel run`: group=option, key=value")
    parser.add_argument("--config-dir", type=Path, help="a folder with your own options, as for `presel run`")
    parser.add_argument(
        "--json", metavar="FILE", help="write all findings to this file too; - for standard output"
    )
    parser.add_argument(
        "--html", metavar="FILE", type=Path, help="write a page with pictures of what was found"
    )
    options = parser.parse_intermixed_args(arguments)
    for name, file in (("json", options.json), ("html", options.html)):
        if file and Path(file).is_dir():
            raise PreselError(f"--{name}={file} is a folder; name a file")
    if options.json == "-":
        # Keeps standard output for the JSON alone.
        console.file = sys.stderr
    with TemporaryDirectory(prefix="presel-doctor-") as scratch:
        _prevent_writes(scratch)
        diagnosis = _diagnosed(options, Path(scratch))
        # Before any file is written, which may fail.
        print_diagnosis(diagnosis)
        if options.json == "-":
            # ASCII: no name can hold terminal control sequences.
            print_text(json.dumps(as_json(diagnosis), indent=1))
        elif options.json:
            write_json(Path(options.json), as_json(diagnosis))
            console.print(f"all findings                  {options.json}")
        if options.html:
            # Here, because the scratch folder holds the images of a built-in pool.
            write_page(options.html, diagnosis)
            console.print(f"page                          {options.html}")
    return int(diagnosis.faults > 0)


def _prevent_writes(scratch: str) -> None:
    """Keeps Python and libraries from writing outside the scratch folder, and from downloading."""
    sys.dont_write_bytecode = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Lightning imports Matplotlib, which caches a list of fonts; torch makes a folder for compiled code.
    os.environ["MPLCONFIGDIR"] = os.environ["TORCHINDUCTOR_CACHE_DIR"] = scratch


def _search_path(folder: Path) -> str:
    return f"hydra.searchpath=[{quoted_value(f'file://{folder.absolute()}')}]"


def _diagnosed(options: argparse.Namespace, scratch: Path) -> Diagnosis:
    searched = [_search_path(options.config_dir)] if options.config_dir else []
    config = composed([*searched, *options.overrides])
    # A pool can be checked before there are benchmarks.
    if config.until == "evaluation" and any(
        key.startswith("evaluation.") for key in OmegaConf.missing_keys(config)
    ):
        config.until = "model"
    try:
        pipeline = build(config)
    except MISTAKES as error:
        raise PreselError(explain(error, options.overrides)) from error
    targets = [pipeline.target(config.until)]
    if isinstance(pipeline.benchmark_source, Benchmarks):
        targets += [pipeline.base_evaluation, pipeline.most_frequent]
    executor = pipeline.runtime.executor
    store = Store(
        Path(config.paths.store).expanduser(), ConsoleReporter(), config.paths.min_free_gb, executor
    )
    try:
        return diagnose(pipeline, targets, store, scratch)
    finally:
        executor.close()
