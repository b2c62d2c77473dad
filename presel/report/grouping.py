"""Which runs a report compares: those of one setting, and their counterparts under the same conditions."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from presel.errors import PreselError
from presel.runs import NOT_COMPARED, RunRecord, load_run
from presel.settings.usage import sets_any_of
from presel.storage.run_folder import RUN_FILE

# Roles whose files every report reads; of the others, but for `relevance`, it reads manifests only.
_READ = {"images", "selection", "evaluation"}
# Overrides that need not name a setting: the strategy does so anyway, and an experiment is a set of settings.
_NOT_NAMED = ("strategy=", "experiment=")
_WHAT_TO_NAME = "name folders of runs or sweeps that ended with until=evaluation, or with until=selection"


def find_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Reads every finished run at or under the folders, jobs of a sweep in their order.

    Raises:
        PreselError: If a folder holds no run at all, or a run's record is damaged.
    """
    found: set[Path] = set()
    for folder in folders:
        files = {file for file in folder.rglob(RUN_FILE) if file.is_file()}
        if not files:
            raise PreselError(f"{folder}: no finished run at or under it; {_WHAT_TO_NAME}")
        found |= {file.parent for file in files}
    # Jobs of a sweep lie in folders 0, 1, … 10.
    in_order = sorted(found, key=lambda folder: (folder.parent, len(folder.name), folder))
    return [load_run(folder) for folder in in_order]


def evaluated(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs with scores, once all that a report reads of them was checked.

    Raises:
        PreselError: If there is none, or a run's files are gone or damaged.
    """
    found = [run for run in runs if run.tuned]
    if not found:
        raise PreselError(f"none of these runs was evaluated; {_WHAT_TO_NAME}")
    return _checked(found, _READ)


def selected(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs that ended before the evaluation but not before the selection, once what is read was checked.

    Raises:
        PreselError: As `evaluated`.
    """
    found = [run for run in runs if not run.tuned and "selection" in run.stages]
    if not found:
        raise PreselError(f"none of these runs selected images; {_WHAT_TO_NAME}")
    return _checked(found, _READ - {"evaluation"})


def _checked(runs: list[RunRecord], roles: set[str]) -> list[RunRecord]:
    for run in runs:
        run.check(*roles, *(run.stages.keys() & {"relevance"}))
    return runs


def left_out(folders: Sequence[Path], runs: Sequence[RunRecord]) -> list[str]:
    """Says which runs at or under the folders a report leaves out, and why.

    Args:
        folders: The folders.
        runs: What `find_runs` found there.
    """
    started = {hydra.parent for folder in folders for hydra in folder.rglob(".hydra")}
    # Without any scores, it is the selections that are compared.
    scored = any(run.tuned for run in runs)
    unscored = {run.folder for run in runs if scored and not run.tuned}
    return [
        f"Left out: {len(skipped)} that {why}, such as {min(skipped)}."
        for skipped, why in (
            (started - {run.folder for run in runs}, "did not finish"),
            (unscored, "ended before the evaluation"),
        )
        if skipped
    ]


def by_setting(runs: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """Groups runs that differ in their seed only; names are the strategy and the settings that differ.

    Two runs with the same result count once.

    Raises:
        PreselError: If one setting has two results with one seed, or two settings have one name.
    """
    runs = list(runs)
    common = frozenset.intersection(*(_named_settings(run) for run in runs))
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        name = " ".join([run.strategy, *sorted(_named_settings(run) - common)])
        name = next((known for known, group in groups.items() if group[0].settings == run.settings), name)
        groups.setdefault(name, []).append(run)
    return {name: _one_per_seed(name, group) for name, group in groups.items()}


def _named_settings(run: RunRecord) -> frozenset[str]:
    """The overrides that may distinguish a run from others of its strategy."""
    return frozenset(
        override
        for override in run.overrides
        if not override.lstrip("+").startswith(_NOT_NAMED)
        and not sets_any_of(override, (*NOT_COMPARED, *run.unused))
    )


def _one_per_seed(name: str, group: Sequence[RunRecord]) -> list[RunRecord]:
    for run in group[1:]:
        if differ := (
            _differences(group[0].settings, run.settings)
            or _differences(group[0].conditions, run.conditions)
            or _differences(group[0].code, run.code)
        ):
            raise PreselError(
                f"{group[0].folder} and {run.folder} are both '{name}', but differ in their {differ[0]}; "
                "report on them one by one"
            )
    by_seed: dict[int, RunRecord] = {}
    for run in group:
        known = by_seed.setdefault(run.seed, run)
        if known.last.key != run.last.key:
            raise PreselError(
                f"{known.folder} and {run.folder} are both '{name}' with seed {run.seed}; name one of them"
            )
    return [by_seed[seed] for seed in sorted(by_seed)]


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Keys that both have, with different values."""
    return [name for name in first if name in second and first[name] != second[name]]


def settings_with(strategy: str, groups: Mapping[str, Sequence[RunRecord]]) -> set[str]:
    """Names of the settings that run a strategy, whatever else they set."""
    return {name for name, runs in groups.items() if runs[0].strategy == strategy}


def counterpart(
    runs: Sequence[RunRecord], strategy: str, groups: Mapping[str, Sequence[RunRecord]]
) -> list[RunRecord]:
    """Finds the runs of another strategy that a setting's runs can be compared with.

    Args:
        runs: Runs of the setting.
        strategy: The other strategy.
        groups: Runs of each setting, as `by_setting` gives them.

    Returns:
        Its runs under the same conditions and with the same budget, one per seed; without any, and if either
        takes the whole pool, those with another budget. Empty if several budgets qualify.
    """
    alike = [
        others
        for others in groups.values()
        if others[0].strategy == strategy and others[0].conditions == runs[0].conditions
    ]
    budget = runs[0].budget
    found = [others for others in alike if others[0].budget == budget] or [
        others for others in alike if 1 in (others[0].budget, budget)
    ]
    if len({others[0].budget for others in found}) > 1:
        return []
    # Settings that make no difference to this strategy may have split its runs into groups.
    return list({run.seed: run for others in found for run in others}.values())
