"""The data behind the map on a page: a compressed column for each property of the images."""

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from presel.console import progress
from presel.page import sheets
from presel.page.pictures import SHEET_COLUMNS
from presel.report.columns import with_numbers
from presel.runs import RunRecord

# In columns of 16 bits: no value.
_NONE = 65535
# Pixels of a thumbnail, up to this number of them and above.
_FEW_PICTURES, _LARGE, _SMALL = 1500, 128, 80
# Share of the thumbnails that the chosen images get at most, if there are more images than thumbnails.
_CHOSEN_SHARE = 0.75


def map_data(runs: Mapping[str, RunRecord], places: pd.DataFrame, pictures: int, workers: int = 0) -> Markup:
    """Writes the data that `report/map.js` draws, as JSON that is inert inside an HTML page.

    Args:
        runs: Runs on one pool, by the names that the page gives them.
        places: The pool's map: id, x, y.
        pictures: Number of images to show with a thumbnail; chosen ones come first.
        workers: Worker processes that open images.
    """
    columns = _Columns()
    tables = {name: _selection(run, places["id"]) for name, run in runs.items()}
    (first, *_), (table, *_) = runs.values(), tables.values()
    tasks, names = pd.factorize(table["task"], sort=True)
    xy = np.round(places[["x", "y"]].to_numpy() * _NONE).astype(np.uint16)  # (n, 2)
    chosen = np.any([one["state"] > 0 for one in tables.values()], axis=0)  # (n,)
    shown = _with_picture(chosen, pictures)  # (m,)
    side = _LARGE if len(shown) <= _FEW_PICTURES else _SMALL
    files = first.images_of(places["id"].iloc[shown].tolist())
    with progress("thumbnails", len(files)) as advance:
        thumbnails = sheets(first.image_folder, files, side, workers, advance)
    data = {
        "ids": _packed(json.dumps(places["id"].tolist()).encode()),
        "x": columns.add(xy[:, 0]),
        "y": columns.add(xy[:, 1]),
        "task": columns.add(tasks.astype(np.uint16)),
        "tasks": [str(name) for name in names],
        # Clusters are numbered in each task anew by the stage that divides the tasks.
        "runs": [
            {"name": name, "by_task": "clusters" in runs[name].stages, **_described(one, columns)}
            for name, one in tables.items()
        ],
        "pictures": {
            "images": columns.add(shown.astype(np.uint32)),
            "side": side,
            "columns": SHEET_COLUMNS,
            "sheets": list(thumbnails.uris),
        },
        "columns": columns.packed,
    }
    # ASCII without the characters of HTML, so that no name ends the script element.
    text = json.dumps(data)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


class _Columns:
    """Packed columns; equal ones, such as the clusters of runs that share them, are kept once."""

    def __init__(self) -> None:
        self.packed: dict[str, tuple[str, str]] = {}

    def add(self, values: NDArray[Any]) -> str:
        """Adds a column, (n,), of unsigned integers, and returns its name."""
        content = values.astype(values.dtype.newbyteorder("<")).tobytes()
        name = hashlib.sha256(values.dtype.str.encode() + content).hexdigest()[:12]
        self.packed[name] = values.dtype.name, _packed(content)
        return name


def _packed(content: bytes) -> str:
    # Without a time, so that equal data has equal bytes.
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def _selection(run: RunRecord, ids: pd.Series) -> pd.DataFrame:
    """A run's selection in the order of the map, with `state`: 0 not chosen, 1 chosen, 2 reference set."""
    table = with_numbers(run.selection).set_index("id").loc[ids].reset_index()
    table["state"] = table["selected"].eq(True).astype(np.uint8)
    table.loc[table["id"].isin(run.reference_ids) & table["selected"], "state"] = 2
    return table


def _described(table: pd.DataFrame, columns: _Columns) -> dict[str, Any]:
    """A run's columns, those that its strategy left."""
    found: dict[str, Any] = {"state": columns.add(table["state"].to_numpy())}
    for name in [name for name in ("cluster", "rank") if name in table]:
        # Some clusterings number what is in no cluster -1.
        values = table[name].where(table[name] >= 0, _NONE).clip(upper=_NONE)
        found[name] = columns.add(values.to_numpy(np.uint16))
    if "centrality" in table and table["centrality"].notna().any():
        values = table["centrality"]
        low, high = float(values.min()), float(values.max())
        steps = (values - low) / ((high - low) or 1) * (_NONE - 1)
        found["centrality"] = columns.add(steps.round().fillna(_NONE).to_numpy(np.uint16))
        found["range"] = [low, high]
    if "why" in table:
        codes, reasons = pd.factorize(table["why"], sort=True)  # -1 without one
        found["why"] = columns.add((codes + 1).astype(np.uint16))
        found["reasons"] = ["", *(str(reason) for reason in reasons)]
    return found


def _with_picture(chosen: NDArray[np.bool_], count: int) -> NDArray[np.intp]:
    """Rows of the images that get a thumbnail, (m,): if not all, a random sample, most of it chosen."""
    if count >= len(chosen):
        return np.arange(len(chosen))
    order = np.random.default_rng(0).permutation(len(chosen))
    taken, others = order[chosen[order]], order[~chosen[order]]
    first = min(len(taken), max(round(_CHOSEN_SHARE * count), count - len(others)))
    return np.sort(np.concatenate([taken[:first], others[: count - first]]))
