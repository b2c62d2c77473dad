"""The diagnosis as an HTML page, with pictures of what was found."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from markupsafe import Markup, escape

from presel.data.exclusion import line_for
from presel.doctor.diagnosis import Diagnosis
from presel.doctor.findings import Finding
from presel.doctor.printing import by_task, cost, duration, size_of, summary, totals
from presel.page import PictureRow, picture, render
from presel.storage.files import atomic

# Rows of a table or of pictures, and pictures of a row, that a page shows.
_ROWS = 50
_PICTURES = 10

_GROUPS = {
    "near-duplicates": (
        "Near-duplicates",
        "Nearly the same picture in several records. pool.near_duplicates=keep_one keeps one in each task, "
        "drop keeps none.",
    ),
    "duplicates in a task": ("Duplicates", "The same file content in several records of a task."),
    "duplicates across tasks": ("Duplicates in several tasks", "The same file content in several tasks."),
}
_ODD = ("tiny", "long and narrow", "a single color", "nearly black")
# Ids of one kind that the page lists.
_IDS = 10_000


@dataclass(frozen=True)
class Section:
    """A part of the page that shows pictures.

    Attributes:
        title: Its heading.
        advice: What they are and what to do about it.
        rows: The pictures.
        more: What is not shown; '' if all are.
        grouped: Whether each row shows pictures that are alike.
        ids: Lists of ids to copy, as lines of a file that `pool.exclude` reads, by heading.
    """

    title: str
    advice: str
    rows: Sequence[PictureRow]
    more: str = ""
    grouped: bool = False
    ids: Mapping[str, Markup] = field(default_factory=dict)


def write_page(file: Path, diagnosis: Diagnosis) -> None:
    """Writes the page, atomically; its size does not grow with the pool."""
    broken = [finding for finding in diagnosis.findings if finding.severity == "fault" and finding.images]
    page = render(
        "doctor/page.html",
        title=f"Images in {diagnosis.images}",
        verdict=_verdict(diagnosis),
        summary=summary(diagnosis),
        cost=cost(diagnosis.plan) if diagnosis.plan else "",
        tasks=_tasks(diagnosis),
        broken=_broken(broken) if broken else None,
        broken_more=_more(len(broken)),
        sections=[*_groups(diagnosis), *_odd(diagnosis)],
        others=_counts(diagnosis.findings) if diagnosis.findings else None,
        times=_times(diagnosis) if diagnosis.times else None,
    )
    with atomic(file) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _verdict(diagnosis: Diagnosis) -> str:
    if not diagnosis.findings:
        return "Nothing is wrong with this pool."
    if not diagnosis.faults:
        return f"Nothing stops a run on this pool: {totals(diagnosis)}."
    return f"Faults stop a run on this pool, or leave images out of it: {totals(diagnosis)}."


def _tasks(diagnosis: Diagnosis) -> pd.DataFrame:
    counts = by_task(diagnosis).sort_values("images", ascending=False, kind="stable")
    plan = diagnosis.plan
    rows = []
    for task, row in counts.iterrows():
        numbers = [f"{row[name]:,.0f}" for name in ("images", "unusable", "duplicates", "near_duplicates")]
        sizes = [size_of(row, quantile) for quantile in ("p05", "median", "p95")]
        rows.append([str(task), *numbers, *sizes, str(plan.bought.get(str(task), 0)) if plan else "–"])
    names = [
        "task",
        "images",
        "unusable",
        "duplicates",
        "near-duplicates",
        "small",
        "median size",
        "large",
        "to buy",
    ]
    return pd.DataFrame(rows, columns=names)


def _broken(broken: Sequence[Finding]) -> pd.DataFrame:
    rows = [(one.where, f"{one.kind}: {one.detail}" if one.detail else one.kind) for one in broken[:_ROWS]]
    return pd.DataFrame(rows, columns=["record and image", "why"])


def _groups(diagnosis: Diagnosis) -> list[Section]:
    """Groups of pictures that are the same, or nearly; the largest groups first."""
    found = _by_kind(diagnosis.findings)
    sections = []
    for kind, (title, advice) in _GROUPS.items():
        groups = sorted(found[kind], key=lambda group: -len(group.ids))
        rows = [
            _row(diagnosis, f"{len(group.ids)} records: {_shortened(group.ids)}", group.images)
            for group in groups[:_ROWS]
        ]
        if rows:
            heading = f"{title} ({len(groups):,} group{'' if len(groups) == 1 else 's'})"
            sections.append(Section(heading, advice, rows, _more(len(groups)), grouped=True))
    return sections


def _odd(diagnosis: Diagnosis) -> list[Section]:
    found = _by_kind(diagnosis.findings)
    rows = [
        _row(
            diagnosis, f"{kind}: {len(found[kind]):,}", [image for one in found[kind] for image in one.images]
        )
        for kind in _ODD
        if found[kind]
    ]
    advice = "They are used all the same. A file with the ids below leaves them out, by pool.exclude=FILE."
    ids = {f"Ids: {kind}": _lines(diagnosis, found[kind]) for kind in _ODD if found[kind]}
    more = _more(max(len(found[kind]) for kind in _ODD), _IDS)
    return [Section("Odd pictures", advice, rows, more, ids=ids)] if rows else []


def _lines(diagnosis: Diagnosis, found: Sequence[Finding]) -> Markup:
    """The ids of all records with an image of these findings as `pool.exclude` reads them, one a line."""
    images = {image for finding in found[:_IDS] for image in finding.images}
    ids = diagnosis.table.loc[diagnosis.table["image"].isin(images), "id"].unique()
    text = escape("\n".join(map(line_for, ids)))
    # As they are, for copying: otherwise `render` would spell out characters that are not visible.
    return Markup(text.encode("ascii", "xmlcharrefreplace").decode())


def _row(diagnosis: Diagnosis, heading: str, images: Sequence[str]) -> PictureRow:
    shown = [picture(diagnosis.images / image, image) for image in images[:_PICTURES]]
    more = f" ({_PICTURES} of {len(images):,} pictures shown)" if len(images) > _PICTURES else ""
    return PictureRow(heading + more, shown)


def _shortened(ids: Sequence[str]) -> str:
    return ", ".join(ids[:2]) + (" …" if ids[2:] else "")


def _by_kind(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    kinds: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        kinds[finding.kind].append(finding)
    return kinds


def _counts(findings: Sequence[Finding]) -> pd.DataFrame:
    counts = Counter((finding.kind, finding.severity) for finding in findings)
    first = {finding.kind: f"{finding.where} {finding.detail}" for finding in reversed(findings)}
    rows = [(kind, severity, f"{number:,}", first[kind]) for (kind, severity), number in counts.items()]
    return pd.DataFrame(rows, columns=["finding", "severity", "number", "first"])


def _times(diagnosis: Diagnosis) -> pd.DataFrame:
    rows = [
        (one.stage, "–" if one.images is None else f"{one.images:,}", duration(one.seconds), one.source)
        for one in diagnosis.times
    ]
    return pd.DataFrame(rows, columns=["stage", "images", "time", "estimated from"])


def _more(number: int, shown: int = _ROWS) -> str:
    return f"The first {shown:,} of {number:,}; presel doctor --json has all." if number > shown else ""
