"""Differences between runs: intervals, p-values and rank correlations by hand."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from presel.report.statistics import compare, holm, paired_t, rank_correlation
from presel.runs import RunRecord
from tests.runs import run


def test_the_interval_of_a_difference(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def drawn(seed: int, strategy: str, chance: float) -> RunRecord:
        answers = {name: (rng.random(200) < chance).astype(float).tolist() for name in ("vqa", "ocr")}
        return run(tmp_path, strategy, seed, answers)

    ours = [drawn(seed, "presel", 0.6) for seed in range(5)]
    random = [drawn(seed, "random", 0.5) for seed in range(1, 6)]
    found = compare(ours, random)
    assert found is not None
    assert found.seeds == 4  # 1 to 4
    paired = [a.mean - b.mean for a, b in zip(ours[1:], random[:4], strict=True)]
    assert found.difference == pytest.approx(np.mean(paired))
    assert found.seeds_won == sum(difference > 0 for difference in paired)
    assert (found.benchmarks, found.benchmarks_won) == (2, 2)
    assert found.low < found.difference < found.high
    # Two proportions of 1,600 answers each: a standard error of 0.0175. The bootstrap is wider, see there.
    assert 4 * 0.0175 < found.high - found.low < 8 * 0.0175
    test = stats.ttest_rel([one.mean for one in ours[1:]], [one.mean for one in random[:4]])
    assert (found.t_low, found.t_high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found.p == pytest.approx(test.pvalue)
    assert compare(ours[:1], random) is None
    single = compare(ours[1:2], random)
    assert single is not None
    assert (single.seeds, single.low, single.high) == (1, None, None)
    assert (single.t_low, single.t_high, single.p) == (None, None, None)


def test_the_t_interval_by_hand() -> None:
    # Mean 2, standard deviation 1. t of 2 degrees of freedom is 4.3027 at 97.5 %; ±2√3 leave 0.0742 outside.
    low, high, p = paired_t(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)
    assert p == pytest.approx(0.0742, abs=1e-4)
    assert paired_t(np.zeros(3)) == (0, 0, 1)
    assert paired_t(np.full(3, 0.25)) is None


def test_the_t_interval_keeps_its_level_with_five_seeds() -> None:
    drawn = np.random.default_rng(0).normal(0.3, 2.0, (1000, 5))
    held = np.mean([low < 0.3 < high for low, high, _ in map(paired_t, drawn)])
    # Three standard errors of a share of 1,000.
    assert held == pytest.approx(0.95, abs=0.021)


def test_holm_by_hand() -> None:
    # Times 4, 3, 2, 1 from the smallest on, and never below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1, 1]
    assert holm([]) == []


def test_the_order_of_equal_terms_wins_nothing(tmp_path: Path) -> None:
    sums = {"random": (0.5, 0.6, 0.3), "presel": (0.4, 0.4, 0.6)}
    ours, random = (
        [run(tmp_path, name, seed, {"vqa": [score]}) for seed, score in enumerate(scores)]
        for name, scores in sums.items()
    )
    assert sum(one.mean for one in ours) == pytest.approx(sum(one.mean for one in random))
    found = compare(ours, random)
    assert found is not None
    assert (found.seeds_won, found.benchmarks_won) == (2, 0)


def test_a_strategy_does_not_differ_from_itself(tmp_path: Path) -> None:
    same = [run(tmp_path, "random", seed, {"vqa": [0.0, 1.0, 1.0]}) for seed in range(3)]
    found = compare(same, same)
    assert found is not None
    assert (found.difference, found.low, found.high, found.seeds_won) == (0, 0, 0, 0)
    assert (found.t_low, found.t_high, found.p) == (0, 0, 1)


def test_rank_correlation_with_ties() -> None:
    ours, others = [1.0, 2.0, 2.0, 5.0, 4.0], [3.0, 1.0, 2.0, 9.0, 9.0]
    assert rank_correlation(ours, others) == pytest.approx(stats.spearmanr(ours, others).statistic)
