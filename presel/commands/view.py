"""`presel view`: one page about what a run chose of its pool."""

import argparse
import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from presel.console import ArgumentParser, console
from presel.console.arguments import whole_number
from presel.errors import PreselError
from presel.pool_map import pool_map
from presel.report.page import PageOptions, page
from presel.report.summary import job_names
from presel.runs import RunRecord, load_run
from presel.selection.threads import cpu_count
from presel.storage.files import atomic

_DESCRIPTION = """\
Show what a run chose, as one page that needs no network: the pool as a map on which similar images lie near
each other, with pictures, a lasso and lists of ids (for pool.exclude=FILE); what was spent on which task and
why; what was chosen and left out of each cluster; near-duplicates among the chosen images; costs. Runs that
ended with until=selection will do. Of several runs on one pool, the map compares any two."""


def main(arguments: Sequence[str]) -> int:
    """Runs `presel view`."""
    parser = ArgumentParser(
        prog="presel view", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs on one pool")
    parser.add_argument("--out", type=Path, help="the page (view.html in the first run's folder)")
    parser.add_argument("--title", help="the page's heading")
    parser.add_argument(
        "--pictures",
        type=whole_number,
        default=PageOptions.pictures,
        help="images that the map shows with a picture, chosen ones first (%(default)s, about 4 MB)",
    )
    parser.add_argument("--no-open", action="store_true", help="do not open the page in a browser")
    options = parser.parse_args(arguments)
    runs = [load_run(folder) for folder in options.runs]
    file = options.out or runs[0].folder / "view.html"
    if file.is_dir():
        raise PreselError(f"--out={file} is a folder; name a file, as in --out={file / 'view.html'}")
    shown = named(runs)
    text = page(
        options.title or f"What {' and '.join(dict.fromkeys(run.strategy for run in runs))} chose",
        shown,
        pool_map(runs[0]),
        PageOptions(pictures=options.pictures, workers=cpu_count()),
    )
    with atomic(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    console.print(file)
    if not options.no_open and _has_screen():
        webbrowser.open(file.absolute().as_uri())
    return 0


def named(runs: Sequence[RunRecord]) -> dict[str, RunRecord]:
    """The runs by strategy and what tells them apart, once all that the page reads of them is checked."""
    for run in runs:
        run.check()
        if run.stages["images"].key != runs[0].stages["images"].key:
            raise PreselError(
                f"{runs[0].folder} and {run.folder} are on different pools; view each by itself"
            )
    names, folders = job_names(runs), [run.folder.absolute() for run in runs]
    above = os.path.commonpath(folders)
    return {
        name if names.count(name) == 1 else f"{name} {folder.relative_to(above)}": run
        for name, folder, run in zip(names, folders, runs, strict=True)
    }


def _has_screen() -> bool:
    """Whether a browser has a screen to open a window on."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
