"""What of its settings a run reads: in sweeps over options that differ, in keys, in messages."""

from pathlib import Path

import pytest
from hydra.errors import HydraException

from presel.settings.schema import build
from presel.settings.sweeps import drop_settings_of_other_options, spread_over_jobs
from presel.settings.usage import sets_any_of, unused
from presel.storage.stage import upstream
from presel.strategies.random import Random
from tests.composing import configured

# Groups that PreSel reads and rivals do not.
PRESEL_ONLY = {"irs", "tau", "neighbors", "allocation", "reference"}
# PreSel's settings that decide nothing beside its defaults.
REDUNDANCY = {"strategy.redundancy_penalty", "strategy.redundancy_power"}
RELEVANCE = {"strategy.score", "strategy.tau"}
# Groups that some rivals read and PreSel does not.
RIVALS_ONLY = {"clip", "score_net", "validation"}


def test_a_sweep_may_set_what_only_one_of_its_options_has(tmp_path: Path) -> None:
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy/mine.yaml").write_text("_target_: mine.Mine\nsharpness: 1\n")
    sweep = ["-m", "strategy=random,presel", "strategy.pick=random", "seed=0,1", "strategy.pikc=1"]
    assert spread_over_jobs(sweep) == [*sweep[:2], "++strategy.pick=random", *sweep[3:]]
    swept = ["-m", "experiment=quickstart", "strategy.pick=random"]
    assert spread_over_jobs(swept) == [*swept[:2], "++strategy.pick=random"]
    mine = ["-m", f"hydra.searchpath=[file://{tmp_path}]", "strategy=mine,random", "strategy.sharpness=1,2"]
    assert spread_over_jobs(mine) == [*mine[:3], "++strategy.sharpness=1,2"]
    assert spread_over_jobs(swept[1:]) == [swept[1], "++strategy.pick=random"]
    # The default option, which Hydra composes before any job, may lack what all of the sweep have.
    gradients = ["-m", "strategy=icons,less", "strategy.dimension=512"]
    assert spread_over_jobs(gradients) == [*gradients[:2], "++strategy.dimension=512"]
    one_run = ["strategy=random", "strategy.pick=random"]
    of_all = ["-m", "seed=1,2", "strategy.pick=random"]
    for strict in (one_run, of_all, [*swept[1:], "hydra.mode=RUN"]):
        assert spread_over_jobs(strict) == strict

    job = ["strategy=random", "++strategy.pick=random", "++seed=1"]
    config = configured(*job)
    assert drop_settings_of_other_options(config, job, sweep) == ["strategy=random", "seed=1"]
    assert build(config).strategy == Random()
    job = ["strategy=presel", "++strategy.pick=random"]
    config = configured(*job)
    assert drop_settings_of_other_options(config, job, sweep) == ["strategy=presel", "strategy.pick=random"]
    assert config.strategy.pick == "random"
    # What no option of the sweep has is a mistake.
    job = ["strategy=random", "++strategy.pikc=1"]
    config = configured(*job)
    drop_settings_of_other_options(config, job, [*sweep[:-1], job[1]])
    with pytest.raises(HydraException, match="pikc"):
        build(config)


@pytest.mark.parametrize(
    ("overrides", "not_read"),
    [
        ([], {*RIVALS_ONLY, *REDUNDANCY}),
        (["strategy=clip_score"], {*PRESEL_ONLY, *RIVALS_ONLY, "encoder", "cluster"} - {"clip"}),
        (["strategy=self_filter"], {*PRESEL_ONLY, "validation", "encoder", "cluster"} - {"reference"}),
        (["strategy=icons"], {*PRESEL_ONLY, "clip", "score_net", "encoder", "cluster"} - {"reference"}),
        (["strategy=tive"], {*PRESEL_ONLY, *RIVALS_ONLY, "encoder", "cluster"} - {"reference"}),
        # Their settings hold τ and the score of IRS, which these modes do not read.
        (
            ["strategy.weighting=uniform"],
            {*RIVALS_ONLY, "irs", "tau", "strategy.shrink", *RELEVANCE, *REDUNDANCY},
        ),
        (
            ["strategy=precover"],
            {*PRESEL_ONLY, *RIVALS_ONLY, "cluster", *RELEVANCE}
            | {f"strategy.{name}" for name in ("exponent", "questions", "beta")},
        ),
        (["strategy=random", "until=selection"], {*PRESEL_ONLY, *RIVALS_ONLY, "encoder", "cluster"}),
    ],
)
def test_what_a_run_does_not_read_is_known(overrides: list[str], not_read: set[str]) -> None:
    config = configured(*overrides)
    assert set(unused(config, build(config))) == not_read


@pytest.mark.parametrize(
    ("mode", "settings", "decides"),
    [
        ([], ["strategy.redundancy_penalty=2", "strategy.redundancy_power=2"], False),
        (["strategy.pick=distinct"], ["strategy.redundancy_penalty=2", "strategy.redundancy_power=2"], True),
        (["strategy.weighting=uniform"], ["strategy.shrink=0.5", "tau.value=1", "irs=difference"], False),
        (["strategy.weighting=size"], ["strategy.shrink=0.5"], True),
        (["strategy=precover"], ["tau.value=1", "irs=difference", "strategy.exponent=1"], False),
        (["strategy=precover"], ["strategy.questions=3", "strategy.beta=2"], False),
        (
            ["strategy=precover", "strategy.picks=uncertainty"],
            ["strategy.questions=3", "strategy.beta=2"],
            True,
        ),
        (["strategy=precover", "strategy.picks=random"], ["strategy.center=false"], False),
        (["strategy=precover", "strategy.budgets=relevance"], ["tau.value=1", "irs=difference"], True),
        (["strategy=precover", "strategy.budgets=gain"], ["strategy.exponent=1"], True),
    ],
)
def test_settings_that_decide_nothing_are_in_no_key(
    mode: list[str], settings: list[str], decides: bool
) -> None:
    plain = build(configured(*mode)).selection.key
    for setting in settings:
        config = configured(*mode, setting)
        pipeline = build(config)
        assert (pipeline.selection.key != plain) == decides
        not_read = unused(config, pipeline)
        assert sets_any_of(setting, not_read) != decides
        assert not any(sets_any_of(chosen, not_read) for chosen in mode)


def test_no_reference_model_is_tuned_where_irs_decides_nothing() -> None:
    labels = [stage.label for stage in upstream(build(configured("strategy.weighting=size")).selection)]
    assert "instructions (reference)" not in labels
    assert "model (reference)" not in labels
