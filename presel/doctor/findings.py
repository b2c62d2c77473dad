"""The checks of `presel doctor`, each a function from the pool's table to findings."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
from PIL import Image

from presel.data.errors import RecordError
from presel.data.image_folder import is_hidden
from presel.data.listing import Item
from presel.data.llava import Record
from presel.data.near_duplicates import groups_of_thumbnails
from presel.data.sources import Source
from presel.doctor.examine import NEARLY_BLACK, Examined
from presel.doctor.plan import Plan
from presel.stages.left_out import checked_near_duplicates

# fault: the run stops or skips the image; warning: it continues, but quality or cost may suffer; note: for
# information.
Severity = Literal["fault", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

# Two patches of a ViT with patches of 14 pixels.
_SMALL_SIDE = 28
# Padded to a square, such an image fills an eighth of it.
_STRETCHED = 8
# A task's relevance is a mean over its reference samples.
_FEW_REFERENCE = 3
# What programs write for a missing value.
_NO_NAMES = frozenset({"nan", "none", "null", "nil", "n/a", "<na>", "nat", "undefined"})
# Special tokens as the tokenizers of common language models write them.
_SPECIAL_TOKEN = re.compile(r"</?s>|<(?:unk|pad|bos|eos|mask|start_of_turn|end_of_turn)>|<\|[^\s<>|]+\|>")
_ORDINARY_MODES = frozenset({"RGB", "L"})


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        severity: How serious it is.
        kind: What it is, in a few words.
        where: The record, image or task, as it is printed.
        detail: Further information; '' if there is none.
        ids: The records concerned.
        images: The images concerned.
    """

    severity: Severity
    kind: str
    where: str
    detail: str = ""
    ids: tuple[str, ...] = ()
    images: tuple[str, ...] = ()


def pool_table(
    items: Sequence[Item], examined: Sequence[Examined], source: Source, by_task: bool
) -> pd.DataFrame:
    """One row per image of each record: id, image, task, the fields of `Examined`, and `first`.

    The thumbnail is left out, as are the records that the pool leaves out as near-duplicates. `first` is the
    row of the first image in the image's group of near-duplicates, its own row if it is the first; copies
    share theirs. It is -1 if an image of the record is unusable. `by_task` is as in
    `checked_near_duplicates`.
    """
    shown = [(item.id, image, item.task) for item in items for image in item.images]
    table = pd.DataFrame(shown, columns=["id", "image", "task"])
    looks = pd.DataFrame(examined, columns=list(Examined._fields))
    # An empty table would otherwise have columns of type object, which have no quantiles.
    table = table.join(looks.astype({"size": int, "width": int, "height": int, "blank": bool}))
    table["first"] = -1
    usable = of_usable_records(table)
    usable = usable.assign(group=groups_of_thumbnails(list(usable["thumbnail"])))  # (n,)
    left_out = checked_near_duplicates(usable, source, by_task)
    usable = usable[~usable["id"].isin(left_out.index)]
    table.loc[usable.index, "first"] = usable.index.to_series().groupby(usable["group"]).transform("first")
    return table[~table["id"].isin(left_out.index)].drop(columns="thumbnail")


def of_usable_records(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a `pool_table` that belong to records without an unusable image."""
    return table[~table["id"].isin(table.loc[table["fault"].notna(), "id"])]


def of_records(errors: Sequence[RecordError]) -> Iterator[Finding]:
    """Unusable records, and places where the file is malformed."""
    for error in errors:
        images = () if error.image is None else (error.image,)
        yield Finding("fault", error.kind, error.place, error.reason, images=images)


def of_texts(records: Iterable[Record]) -> Iterator[Finding]:
    """Records whose text contains special tokens, which this program reads as text but others may not."""
    for record in records:
        texts = (turn["value"] for turn in record.conversations)
        tokens = dict.fromkeys(token for text in texts for token in _SPECIAL_TOKEN.findall(text))
        if tokens:
            kind = "special token in the text, read as text"
            where = ", ".join([f"'{record.id}'", *record.images])
            yield Finding("note", kind, where, " ".join(tokens), (record.id,), record.images)


def of_images(table: pd.DataFrame, files: Sequence[str]) -> Iterator[Finding]:
    """Unusable images in a `pool_table`; `files` are those of `image_files`, to find misspelled names."""
    by_normalized_name = {normalized(file): file for file in files}
    for row in _rows(table[table["fault"].notna()]):
        kind = re.split(r" ?[:(,;]", row.fault)[0]
        other = by_normalized_name.get(normalized(row.image))
        detail = f"there is '{other}'" if row.fault == "missing" and other else row.fault.removeprefix(kind)
        yield Finding("fault", kind, _record(row), detail.strip(" :,;"), (row.id,), (row.image,))


def of_duplicates(table: pd.DataFrame) -> Iterator[Finding]:
    """Images with equal bytes in several records, of one task or of several."""
    usable = table[table["fault"].isna()].drop_duplicates(["id", "content"])
    repeated = usable[usable["content"].duplicated(keep=False)]
    for _, group in repeated.groupby("content", sort=False):
        tasks = group["task"].value_counts()
        if tasks.max() > 1:
            for task in tasks.index[tasks > 1]:
                yield _group("duplicates in a task", group[group["task"] == task])
        if len(tasks) > 1:
            yield _group("duplicates across tasks", group)


def of_near_duplicates(table: pd.DataFrame) -> Iterator[Finding]:
    """Different files that show nearly the same image, unless one record holds them all."""
    different = table[table["first"] >= 0].drop_duplicates("content")
    alike = different[different["first"].duplicated(keep=False)]
    for _, group in alike.groupby("first", sort=False):
        if group["id"].nunique() > 1:
            yield _group("near-duplicates", group)


def of_image_properties(table: pd.DataFrame) -> Iterator[Finding]:
    """Usable images with little content, or with unexpected properties."""
    usable = table[table["fault"].isna()].drop_duplicates("image")
    short = usable[["width", "height"]].min(axis=1)
    long = usable[["width", "height"]].max(axis=1)
    sizes = usable["width"].astype(str) + " × " + usable["height"].astype(str)
    levels = (usable["brightest"] + 1).astype(str) + " of 256 gray levels"
    kinds: list[tuple[Severity, str, pd.Series, pd.Series]] = [
        ("warning", "a single color", usable["blank"], sizes),
        ("warning", "nearly black", usable["brightest"].between(1, NEARLY_BLACK - 1), levels),
        ("warning", "tiny", short < _SMALL_SIDE, sizes),
        ("warning", "long and narrow", long > _STRETCHED * short, sizes),
        ("note", "wrong name for its format", _misnamed(usable), usable["format"]),
        ("note", "several frames, only the first is used", usable["frames"], usable["format"]),
        ("note", "rotated by EXIF", usable["rotated"], sizes),
        ("note", "converted to RGB", ~usable["mode"].isin(_ORDINARY_MODES), usable["mode"]),
    ]
    for severity, kind, found, details in kinds:
        for row, detail in zip(_rows(usable[found]), details[found], strict=True):
            yield Finding(severity, kind, _record(row), detail, (row.id,), (row.image,))


def of_ambiguous_names(table: pd.DataFrame) -> Iterator[Finding]:
    """Names that some readers or file systems treat as equal, and tasks named like a missing value."""
    for task in table["task"].unique():
        if normalized(task) in _NO_NAMES:
            yield Finding("warning", "task named like a missing value", f"task '{task}'")
    for what, names in (("images", table["image"]), ("tasks", table["task"])):
        different = pd.Series(names.unique())
        for _, group in different.groupby(different.map(normalized)):
            if len(group) > 1:
                where = " and ".join(f"'{name}'" for name in group)
                images = tuple(group) if what == "images" else ()
                yield Finding("warning", f"{what} whose names hardly differ", where, images=images)


def of_unreferenced_files(files: Sequence[str], named: set[str]) -> Iterator[Finding]:
    """Image files in the folder that no record refers to."""
    for image in sorted(set(files) - named):
        yield Finding("note", "image that no record names", image, images=(image,))


def of_tasks(
    sizes: Mapping[str, int], plan: Plan | None, images_per_cluster: int | None
) -> Iterator[Finding]:
    """Tasks too small for the budget, the reference set or the clusters, by usable images.

    `plan` is None if the budget cannot be met, `images_per_cluster` if the run does not cluster tasks.
    """
    for task, size in sizes.items():
        where = f"task '{task}'"
        if size <= 1:
            # A run that draws a reference set stops at a task of a single image.
            severity: Severity = "fault" if size and plan and plan.reference else "warning"
            kind = "task of a single image" if size else "task without a usable image"
            yield Finding(severity, kind, where)
            continue
        if plan and plan.reference and plan.reference[task] < _FEW_REFERENCE:
            detail = f"{size} images, {plan.reference[task]} of them in the reference set: too few for a mean"
            yield Finding("warning", "reference set too small", where, detail)
        elif plan and not plan.bought[task]:
            detail = f"{size} images, none of which the budget would buy if split by size"
            yield Finding("warning", "task too small for the budget", where, detail)
        if images_per_cluster and size < images_per_cluster:
            detail = f"{size} images, fewer than the {images_per_cluster} per cluster"
            yield Finding("note", "task smaller than a cluster", where, detail)


def image_files(root: Path) -> list[str]:
    """Files under a folder with the extension of an image format, relative to it, without hidden ones."""
    endings = tuple(Image.registered_extensions())
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not is_hidden(name)]
        inside = Path(folder).relative_to(root)
        shown = [name for name in names if name.lower().endswith(endings) and not is_hidden(name)]
        found += [(inside / name).as_posix() for name in shown]
    return found


def normalized(name: str) -> str:
    """A name normalized as some file systems and readers do: case, white space, composed accents."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def _rows(table: pd.DataFrame) -> Iterable[Any]:
    return table.itertuples()


def _record(row: Any) -> str:
    return f"'{row.id}', {row.image}"


def _group(kind: str, group: pd.DataFrame) -> Finding:
    images = list(dict.fromkeys(group["image"]))
    tasks = ", ".join(sorted(group["task"].unique()))
    detail = f"{len(group)} records in {tasks}: {', '.join(images[:3])}{' …' if len(images) > 3 else ''}"
    return Finding("warning", kind, f"'{group['id'].iloc[0]}'", detail, tuple(group["id"]), tuple(images))


def _misnamed(usable: pd.DataFrame) -> pd.Series:
    formats = Image.registered_extensions()
    named = usable["image"].map(lambda image: formats.get(Path(image).suffix.lower()))
    # MPO is a camera's JPEG with a preview inside.
    return named.notna() & (named != usable["format"].replace("MPO", "JPEG"))
