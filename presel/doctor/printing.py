"""A diagnosis as sentences and short tables, or all of it as JSON."""

from collections import Counter, defaultdict
from dataclasses import asdict
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from presel.console import console
from presel.doctor.diagnosis import Diagnosis
from presel.doctor.findings import Finding
from presel.doctor.plan import Plan
from presel.doctor.times import UNKNOWN, StageTime

# Findings printed per kind, and tasks printed; the JSON has all.
_EXAMPLES = 5
_TASKS = 40
_STYLES = {"fault": "red", "warning": "yellow", "note": "dim"}
_QUANTILES = {"p05": 0.05, "median": 0.5, "p95": 0.95}


def by_task(diagnosis: Diagnosis) -> pd.DataFrame:
    """One row per task: images (usable), unusable, duplicates, near_duplicates, bytes, widths, heights.

    A record with several images counts as one in the first two. Duplicates are images that occurred in an
    earlier record of the same task; near-duplicates are different images that resemble an earlier one
    anywhere in the pool.
    """
    table, usable = diagnosis.table, diagnosis.usable
    different = usable.drop_duplicates("content")
    broken = table[table["fault"].notna()].drop_duplicates("id")
    of_records = usable.drop_duplicates(["id", "content"])
    counted = {
        "images": usable.drop_duplicates("id")["task"],
        "unusable": broken["task"],
        "duplicates": of_records.loc[of_records.duplicated(["task", "content"]), "task"],
        "near_duplicates": different.loc[different["first"] != different.index, "task"],
    }
    counts = pd.DataFrame({name: tasks.value_counts() for name, tasks in counted.items()})
    counts["bytes"] = usable.groupby("task")["size"].sum()
    counts = counts.reindex(sorted(table["task"].unique())).fillna(0).astype(int)
    for side in ("width", "height"):
        for name, share in _QUANTILES.items():
            counts[f"{side}_{name}"] = usable.groupby("task")[side].quantile(share).reindex(counts.index)
    return counts


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Prints the tables of tasks, findings, times and costs."""
    for line in summary(diagnosis):
        console.print(line)
    console.print()
    console.print(_task_table(diagnosis))
    print_findings(diagnosis.findings)
    if diagnosis.times:
        console.print(_time_table(diagnosis.times))
        unknown = [one.stage for one in diagnosis.times if one.source == UNKNOWN]
        if unknown:
            console.print(f"time unknown, since there is no similar run in the store: {', '.join(unknown)}")
    if diagnosis.plan:
        console.print(cost(diagnosis.plan))
    console.print()
    console.print(totals(diagnosis), style="bold")


def summary(diagnosis: Diagnosis) -> list[str]:
    """What the pool holds, and what is left out of it, in a few sentences."""
    usable = diagnosis.usable
    different = usable["content"].nunique()
    lines = [
        f"{diagnosis.records:,} records, {len(usable):,} usable images ({different:,} different) in "
        f"{usable['task'].nunique()} tasks, {usable['size'].sum() / 1e6:,.1f} MB, in {diagnosis.images}"
    ]
    counts = {
        "records without an image are skipped": diagnosis.text_only,
        "records without an image are kept in the training set": diagnosis.text_only_kept,
        "records are left out by pool.exclude": diagnosis.excluded,
        "records are left out by pool.near_duplicates": diagnosis.near_duplicates,
    }
    lines += [f"{number:,} {what}" for what, number in counts.items() if number]
    return [*lines, f"formats: {_shares(usable['format'])}; pixels: {_shares(usable['mode'])}"]


def totals(diagnosis: Diagnosis) -> str:
    """Number of findings by severity."""
    counts = Counter[str](finding.severity for finding in diagnosis.findings)
    numbers = [(severity, counts[severity]) for severity in _STYLES]
    return ", ".join(f"{number:,} {severity}{'' if number == 1 else 's'}" for severity, number in numbers)


def _shares(values: pd.Series) -> str:
    shares = values.value_counts(normalize=True)
    return ", ".join(f"{name} {100 * share:.3g} %" for name, share in shares.items()) or "none"


def _task_table(diagnosis: Diagnosis) -> Table:
    numbers = ("images", "%", "unusable", "duplicates", "near-duplicates", "median size", "MB")
    table = _table("task", *numbers, "reference", "to buy")
    counts = by_task(diagnosis).sort_values("images", ascending=False, kind="stable")
    total = max(1, int(counts["images"].sum()))
    plan = diagnosis.plan
    reference, bought = (plan.reference or {}, plan.bought) if plan else ({}, {})

    def add(name: str, row: pd.Series, size: str, of_reference: Any, to_buy: Any) -> None:
        images = (f"{row['images']:,.0f}", f"{100 * row['images'] / total:.1f}")
        numbers = (f"{row[column]:,.0f}" for column in ("unusable", "duplicates", "near_duplicates"))
        size_and_bytes = (size, f"{row['bytes'] / 1e6:,.1f}")
        table.add_row(name, *images, *numbers, *size_and_bytes, str(of_reference), str(to_buy))

    for task, row in counts.head(_TASKS).iterrows():
        name = str(task)
        add(name, row, size_of(row, "median"), reference.get(name, "–"), bought.get(name, "–"))
    if len(counts) > _TASKS:
        table.add_row(f"… {len(counts) - _TASKS} smaller tasks")
    if len(counts) > 1:
        table.add_section()
        add("all", counts.sum(), "", sum(reference.values()) or "–", sum(bought.values()) or "–")
    return table


def size_of(row: pd.Series, quantile: str) -> str:
    """Width and height that a quantile of a task's images stay below.

    Args:
        row: The task's row in `by_task`.
        quantile: p05, median or p95.
    """
    if not row["images"]:
        return "–"
    return f"{row[f'width_{quantile}']:.0f} × {row[f'height_{quantile}']:.0f}"


def print_findings(found: list[Finding]) -> None:
    """Prints findings by kind, a few of each."""
    kinds: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in found:
        kinds[finding.severity, finding.kind].append(finding)
    for (severity, kind), findings in kinds.items():
        style = _STYLES[severity]
        console.print(Text.assemble((f"{severity:<8} ", style), (kind, "bold"), f": {len(findings):,}"))
        for finding in findings[:_EXAMPLES]:
            text = f"{finding.where}: {finding.detail}" if finding.detail else finding.where
            console.print(f"           {text}")
        if len(findings) > _EXAMPLES:
            console.print(f"           … {len(findings) - _EXAMPLES:,} more")
    if not kinds:
        console.print("nothing is wrong")


def _time_table(times: list[StageTime]) -> Table:
    table = _table("stage", "images", "time")
    table.add_column("estimated from")
    for one in times:
        if one.source != UNKNOWN:
            images = "–" if one.images is None else f"{one.images:,}"
            table.add_row(one.stage, images, duration(one.seconds), one.source)
    table.add_section()
    known = sum(one.seconds for one in times if one.seconds is not None)
    table.add_row("known so far", "", duration(known))
    return table


def duration(seconds: float | None) -> str:
    """A time as people say it; `?` if it is unknown."""
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def cost(plan: Plan) -> str:
    """What the instructions of a run take, in one sentence."""
    images = sum(plan.bought.values())
    text = f"instructions: {images:,} images"
    if plan.reference is not None:
        text += f", {sum(plan.reference.values()):,} of them for the reference set"
    if plan.rounds > 1:
        text += f", the others in {plan.rounds} rounds"
    if plan.bought != plan.selected:
        text += " (the strategy reads all instructions before it chooses)"
    if plan.estimate is None:
        return f"{text}; free of charge"
    text += f"; about {plan.estimate.tokens:,} tokens, "
    if plan.estimate.money:
        text += f"cost {plan.estimate.money:,.2f}"
    else:
        text += (
            "cost unknown without instructions.price_per_million_prompt_tokens and "
            "instructions.price_per_million_answer_tokens"
        )
    return text + (f", above {' and '.join(plan.exceeds)}" if plan.exceeds else "")


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    return table


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """The whole diagnosis as a JSON object.

    - `images`: the image folder; `records`, `text_only`, `text_only_kept`, `excluded`,
      `near_duplicates_left_out`, `usable_images`, `different_images`: counts; `formats` and
      `modes`: counts of usable images.
    - `tasks`: by name, the columns of `by_task` and the instructions to buy: `reference` (null if the
      strategy needs none) and `bought` in all; both null if the budget cannot be met.
    - `near_duplicates`: `groups`, the number of groups; `images`, the number of different images in them;
      `share`, of all different images.
    - `findings`: a list of `severity` (fault, warning, note), `kind`, `where`, `detail`, `ids`, `images`.
    - `counts`: number of findings by severity and kind.
    - `instructions`: `images`; `tokens` and `money`, both null if the provider is free; `exceeds`, the limits
      that the estimate exceeds; null if the budget cannot be met.
    - `stages`: a list of `stage`, `images`, `seconds` (null if unknown), `source`.
    """
    usable, plan = diagnosis.usable, diagnosis.plan
    different = usable.drop_duplicates("content")
    grouped = different["first"].duplicated(keep=False)
    columns = by_task(diagnosis).astype(object)
    tasks = columns.where(columns.notna(), None).to_dict("index")
    counts: dict[str, Counter[str]] = {severity: Counter() for severity in _STYLES}
    for finding in diagnosis.findings:
        counts[finding.severity][finding.kind] += 1
    for task, row in tasks.items():
        name = str(task)
        row["reference"] = plan.reference.get(name, 0) if plan and plan.reference is not None else None
        row["bought"] = plan.bought.get(name, 0) if plan else None
    return {
        "images": str(diagnosis.images),
        "records": diagnosis.records,
        "text_only": diagnosis.text_only,
        "text_only_kept": diagnosis.text_only_kept,
        "excluded": diagnosis.excluded,
        "near_duplicates_left_out": diagnosis.near_duplicates,
        "usable_images": len(usable),
        "different_images": len(different),
        "formats": usable["format"].value_counts().to_dict(),
        "modes": usable["mode"].value_counts().to_dict(),
        "tasks": tasks,
        "near_duplicates": {
            "groups": different.loc[grouped, "first"].nunique(),
            "images": int(grouped.sum()),
            "share": float(grouped.mean()) if len(grouped) else 0.0,
        },
        "findings": [asdict(finding) for finding in diagnosis.findings],
        "counts": counts,
        "instructions": None
        if plan is None
        else {
            "images": sum(plan.bought.values()),
            "tokens": plan.estimate.tokens if plan.estimate else None,
            "money": plan.estimate.money if plan.estimate else None,
            "exceeds": plan.exceeds,
        },
        "stages": [asdict(time) for time in diagnosis.times],
    }
