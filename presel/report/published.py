"""Figures of published tables, which a report shows beside its own."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from presel.storage.files import read_json

# Safaei et al. 2025 (PreSel), arXiv 2503.07591, and Dong et al. 2026 (VisNec), arXiv 2603.01195.
PRESEL = "paper_results.json"
VISNEC = "visnec_results.json"
# The budget of all these tables, as a share of the pool.
PUBLISHED_BUDGET = 0.15


@dataclass(frozen=True)
class PublishedTable:
    """Where a published table is, and what a report calls it.

    Attributes:
        title: Whose table it is, and which.
        file: Its file in the package's assets.
        place: Its place in the file.
    """

    title: str
    file: str
    place: tuple[str, ...]


PUBLISHED_TABLES = {
    "table1_llava665k": PublishedTable("PreSel's Table 1", PRESEL, ("table1_llava665k",)),
    "table2_vision_flan": PublishedTable("PreSel's Table 2", PRESEL, ("table2_vision_flan",)),
    "table3_vicuna_13b": PublishedTable(
        "PreSel's Table 3 (Vicuna-13B)", PRESEL, ("table3_architectures", "vicuna-13b")
    ),
    "table3_llama_3_8b": PublishedTable(
        "PreSel's Table 3 (Llama-3-8B)", PRESEL, ("table3_architectures", "llama-3-8b")
    ),
    "visnec_llava665k": PublishedTable("VisNec's table (LLaVA-665K)", VISNEC, ("llava665k",)),
    "visnec_vision_flan": PublishedTable("VisNec's table (Vision-Flan)", VISNEC, ("vision_flan",)),
}


def published_relative(name: str) -> dict[str, float]:
    """Rel. of each strategy in a published table, a key of `PUBLISHED_TABLES`; 1 for the full pool."""
    table = PUBLISHED_TABLES[name]
    return {row["method"]: row["relative"] / 100 for row in _rows(table.file, *table.place)}


def published_hours() -> dict[str, tuple[float, float]]:
    """GPU hours of selection and of tuning in PreSel's Table 4, by strategy."""
    return {
        row["method"]: (row["selection_gpu_hours"] or 0.0, row["finetune_gpu_hours"])
        for row in _rows(PRESEL, "table4_cost")
    }


def _rows(file: str, *place: str) -> list[dict[str, Any]]:
    found: Any = read_json(Path(str(files("presel") / "assets" / file)))["tables"]
    for name in place:
        found = found[name]
    rows: list[dict[str, Any]] = found
    return rows
