"""The page about runs and what they chose, for `presel report` and `presel view`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from presel.page import render
from presel.report.gallery import gallery
from presel.report.lead import on_selection, on_untuned
from presel.report.map_data import map_data
from presel.report.near_duplicates import find_near_duplicates
from presel.report.spending import requests, spending, times
from presel.report.tables import BASELINE
from presel.runs import RunRecord


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """What a user can ask of the page.

    Attributes:
        row: Images in a row of a contact sheet.
        pictures: Images that the map shows with a picture.
        workers: Worker processes that open images.
    """

    row: int = 8
    pictures: int = 4000
    workers: int = 0


def page(
    title: str,
    shown: Mapping[str, RunRecord],
    places: pd.DataFrame | str,
    options: PageOptions,
    *,
    lead: Sequence[str] = (),
    tables: Mapping[str, pd.DataFrame] | None = None,
    notes: Sequence[str] = (),
    figures: Mapping[str, str] | None = None,
) -> str:
    """Writes the page.

    Args:
        title: Its heading.
        shown: The runs that it shows, by name.
        places: The map of their pool, or a sentence that says why there is none.
        options: Numbers of pictures.
        lead: Its first sentences; without them, sentences about the selections.
        tables: Tables of strings before everything else, by heading.
        notes: Paragraphs under the first table.
        figures: SVG by caption, at the end.
    """
    by_task = {name: spending(run) for name, run in shown.items()}
    shares = [max(one.share, one.pool_share) for tasks in by_task.values() for one in tasks]
    drawn = None
    if isinstance(places, pd.DataFrame):
        # Compared at first are the first of these and the last: best with random selection.
        compared = dict(sorted(shown.items(), key=lambda named: named[1].strategy == BASELINE))
        drawn = map_data(compared, places, options.pictures, options.workers)
    return render(
        "report/report.html",
        title=title,
        lead=lead or _lead(shown, by_task),
        tables=tables or {},
        notes=notes,
        map=drawn,
        no_map=places if drawn is None else "",
        spending=by_task,
        widest=max(shares),
        gallery=gallery(shown, options.row),
        near_duplicates=find_near_duplicates(shown, options.workers),
        ledgers={name: {"requests": requests(run), "times": times(run)} for name, run in shown.items()},
        figures={
            caption: Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1))
            for caption, svg in (figures or {}).items()
        },
    )


def _lead(shown: Mapping[str, RunRecord], by_task: Mapping[str, Any]) -> list[str]:
    said = [sentence for name, run in shown.items() for sentence in on_selection(name, run, by_task[name])]
    untuned = [run for run in shown.values() if not run.tuned]
    return [*said, on_untuned(untuned)] if untuned else said
