"""Published tables: their own consistency, and how they stand beside ours."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from presel.evaluation.scores import relative_score
from presel.report.grouping import by_setting
from presel.report.notes import notes_on
from presel.report.published import PRESEL, VISNEC, published_relative
from presel.report.tables import formatted, results, scores
from presel.runs import RunRecord
from tests.chosen import finished
from tests.runs import tuned


def test_the_paper_is_cited_at_its_own_budget(tmp_path: Path) -> None:
    groups = by_setting([tuned(tmp_path, "presel", budget=3), tuned(tmp_path, "full", budget=20)])
    table = results(groups, ["table3_vicuna_13b", "visnec_vision_flan"])
    assert table["published_table3_vicuna_13b"].tolist() == pytest.approx([0.983, 1])
    assert table["published_visnec_vision_flan"].tolist() == pytest.approx([1.006, 1])
    ablation = by_setting([tuned(tmp_path, "presel", "strategy.pick=random", budget=3)])
    assert list(ablation) == ["presel"]
    assert results(ablation, ["table1_llava665k"])["published_table1_llava665k"].isna().all()
    runs = [tuned(tmp_path, "presel", f"budget={budget}", budget=budget) for budget in (3, 6)]
    published = results(by_setting(runs), ["table1_llava665k"])["published_table1_llava665k"]
    assert published.isna().all()


def test_published_tables_stand_last_and_side_by_side(tmp_path: Path) -> None:
    names = ["table1_llava665k", "visnec_llava665k", "table3_vicuna_13b"]
    groups = by_setting([tuned(tmp_path, "typiclust")])
    shown = formatted(results(groups, names), scores(groups), names)
    # The third has no such strategy.
    assert shown.iloc[0, -3:].to_dict() == {
        "vqa": "50.0",
        "Rel. in PreSel's Table 1": "96.8",
        "Rel. in VisNec's table (LLaVA-665K)": "96.9",
    }


def test_agreement_with_published_orders_is_reported(tmp_path: Path) -> None:
    # Published: 95.7, 96.8, 90.3, 93.0 and 97.9; ours swap the first two.
    ours = {"random": 0.7, "typiclust": 0.6, "clip_score": 0.3, "el2n": 0.4, "presel": 0.8, "own": 0.9}
    whole = finished(tmp_path / "whole").folder
    (whole / "scores.json").write_text('{"vqa": 1.0}')
    finished(whole)
    runs = [tuned(tmp_path, name, score=score, full_evaluation=whole) for name, score in ours.items()]
    runs.append(tuned(tmp_path, "full", budget=20, score=1.0, full_evaluation=whole))
    names = ["table1_llava665k", "table3_vicuna_13b"]

    def told(runs: list[RunRecord]) -> list[str]:
        groups = by_setting(runs)
        return [note for note in notes_on(groups, results(groups, names), names) if "correlation" in note]

    # 1 - 6 (1 + 1) / (5 (25 - 1)).
    assert told(runs) == [
        "Spearman's rank correlation of mean Rel. with Rel. in PreSel's Table 1 (strategies in both: 5): "
        "+0.90.",
        "Rank correlation of mean Rel. with Rel. in PreSel's Table 3 (Vicuna-13B) (strategies in both: "
        "2) is not given: too few strategies.",
    ]
    assert told(runs[-2:]) == []


def test_the_papers_figures_stand_beside_ours() -> None:
    assert published_relative("table1_llava665k")["presel"] == pytest.approx(0.979)


def test_rel_of_every_published_row_is_what_our_formula_gives() -> None:
    tables = asset(PRESEL)["tables"]
    blocks = {
        "table1": tables["table1_llava665k"],
        "table2": tables["table2_vision_flan"],
        **tables["table3_architectures"],
        **asset(VISNEC)["tables"],
    }
    otherwise = {}
    for name, rows in blocks.items():
        (full,) = [row["scores"] for row in rows if row["method"] == "full"]
        for row in rows:
            ours = relative_score(row["scores"], full)
            assert ours is not None
            if 100 * ours != pytest.approx(row["relative"], abs=0.051):
                otherwise[name, row["method"]] = (round(100 * ours, 1), row["relative"])
    assert sum(map(len, blocks.values())) == 52
    # Rows whose published scores do not give their published Rel.
    assert otherwise == {
        ("table1", "el2n"): (93.1, 93.0),
        ("llava665k", "ifd"): (92.2, 92.1),
        ("llava665k", "clip_score"): (91.0, 92.0),
        ("llava665k", "coido"): (98.1, 97.7),
        ("vision_flan", "typiclust"): (92.6, 92.0),
        ("vision_flan", "clip_score"): (92.8, 92.2),
        ("vision_flan", "visnec"): (115.7, 115.8),
    }


def asset(name: str) -> Any:
    return json.loads((files("presel") / "assets" / name).read_text(encoding="utf-8"))


def test_visnecs_tables_repeat_presels_figures_of_the_common_strategies() -> None:
    differing = set()
    for table, original in (("llava665k", "table1_llava665k"), ("vision_flan", "table2_vision_flan")):
        presel = {row["method"]: row["scores"] for row in asset(PRESEL)["tables"][original]}
        for row in asset(VISNEC)["tables"][table]:
            known = presel.get(row["method"], {}).keys() & row["scores"].keys()
            differing |= {
                (row["method"], name)
                for name in known
                if row["method"] != "full" and row["scores"][name] != presel[row["method"]][name]
            }
    assert differing == {("self_filter", "POPE"), ("presel", "VQAv2")}
