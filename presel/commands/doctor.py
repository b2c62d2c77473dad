"""`presel doctor`: checks a pool, and says what a run on it would take and cost."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from presel.commands.run import check_step
from presel.console import ArgumentParser, ConsoleReporter, console
from presel.doctor.diagnosis import Diagnosis, diagnose
from presel.doctor.printing import as_json, print_diagnosis
from presel.errors import PreselError
from presel.evaluation.benchmarks import Benchmarks
from presel.settings.errors import MISTAKES, UNREADABLE, explain
from presel.settings.overrides import check_overrides
from presel.settings.paths import config_folder
from presel.settings.schema import build, register
from presel.storage.files import write_json
from presel.storage.store import Store

_DESCRIPTION = """\
Check a pool before anything is spent on it. Takes the settings of `presel run`, and says what that run would
meet with: images and sizes of each task, records and images that cannot be used, copies and near-duplicates,
tasks too small for the budget, the time of each stage, and what the instructions would cost. It goes on past
the first mistake and lists them all. Nothing is changed, neither pool nor store, and nothing downloaded."""

_EPILOG = """\
examples:
  presel doctor                                        the built-in pool
  presel doctor pool=llava_json pool.annotations=pool.json pool.images=images
  presel doctor experiment=realpool pool.annotations=pool.json pool.images=images budget=500 --json found.json

what it finds:
  fault    a run stops there, or leaves the image out: a record without an answer, a truncated image, a budget
           below the reference set …
  warning  a run goes on, to somebody's loss: copies, near-duplicates, blank and tiny images, small tasks,
           images that are in a benchmark too …
  note     worth knowing: images that no record names, names that do not tell the format, EXIF rotation …

Near-duplicates are the same picture encoded, scaled, brightened or cut a little differently, told by 16 × 16
thumbnails. Times come from earlier runs in the store where there are some, otherwise from trying the models
on some of the images; where neither says anything, the table says so.

exit status: 0 no fault, 1 faults, 2 a mistake in the command or files that cannot be read"""


def doctor_command(arguments: Sequence[str]) -> int:
    """Runs `presel doctor`.

    Returns:
        0, or 1 where faults were found.

    Raises:
        PreselError: If the configuration is not as it should be, or the pool cannot be read at all.
    """
    parser = ArgumentParser(
        prog="presel doctor",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", help="settings, as for `presel run`: group=option, key=value")
    parser.add_argument(
        "--config-dir", type=Path, help="a folder of options of your own, as for `presel run`"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write all there is to say here too; - for the standard output"
    )
    parser.add_argument(
        "--no-trial", action="store_true", help="estimate times from earlier runs alone, load no model"
    )
    options = parser.parse_intermixed_args(arguments)
    if options.json == "-":
        # What people read makes way for what programs read.
        console.file = sys.stderr
    with TemporaryDirectory(prefix="presel-doctor-") as scratch:
        _leave_no_trace(scratch)
        diagnosis = _diagnosed(options, Path(scratch))
    print_diagnosis(diagnosis)
    if options.json == "-":
        # In ASCII, so that no name commands the terminal.
        print(json.dumps(as_json(diagnosis), indent=1))
    elif options.json:
        write_json(Path(options.json), as_json(diagnosis))
        console.print(f"everything                    {options.json}")
    return int(diagnosis.faults > 0)


def _leave_no_trace(scratch: str) -> None:
    """Sees to it that neither Python nor libraries write or download anything."""
    sys.dont_write_bytecode = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Lightning imports Matplotlib, which keeps a list of fonts; torch makes a folder for what it compiles.
    os.environ["MPLCONFIGDIR"] = os.environ["TORCHINDUCTOR_CACHE_DIR"] = scratch


def _diagnosed(options: argparse.Namespace, scratch: Path) -> Diagnosis:
    # A strategy of one's own may lie in the working directory, as with `presel run`.
    sys.path.append(str(Path.cwd()))
    config = _composed(options.overrides, options.config_dir)
    try:
        pipeline = build(config)
    except MISTAKES as error:
        raise PreselError(explain(error, options.overrides)) from error
    targets = [getattr(pipeline, config.until)]
    if isinstance(pipeline.benchmark_source, Benchmarks):
        targets += [pipeline.base_evaluation, pipeline.most_frequent]
    store = Store(Path(config.paths.store).expanduser(), ConsoleReporter())
    return diagnose(pipeline, targets, store, scratch, trial=not options.no_trial)


def _composed(overrides: list[str], config_dir: Path | None) -> DictConfig:
    """The configuration that `presel run` would run on."""
    register()
    check_overrides(overrides)
    searched = [] if config_dir is None else [f"hydra.searchpath=[file://{config_dir.absolute()}]"]
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            config = compose("config", overrides=[*searched, *overrides])
    except (*MISTAKES, *UNREADABLE) as error:
        raise PreselError(explain(error, overrides)) from error
    check_step(config.until)
    # A pool can be looked at before there is anything to evaluate on.
    if config.until == "evaluation" and any(
        key.startswith("evaluation.") for key in OmegaConf.missing_keys(config)
    ):
        config.until = "model"
    return config
