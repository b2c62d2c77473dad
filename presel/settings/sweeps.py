"""Sweeps over the options of a group, some of whose settings only one option has."""

from collections.abc import Sequence

from omegaconf import DictConfig, open_dict

from presel.settings.options import fields_of
from presel.settings.overrides import chosen_options, is_sweep, parsed


def spread_over_jobs(overrides: Sequence[str]) -> list[str]:
    """Lets a sweep over options of a group set what they have: `strategy=random,presel strategy.pick=…`.

    Such a setting becomes an addition (`++`), which Hydra makes to every job;
    `drop_settings_of_other_options` removes it from those whose option lacks it. Otherwise Hydra would look
    for it in the group's default, before any job. A setting that no option has is left for Hydra to refuse.
    """
    if not is_sweep(overrides):
        return list(overrides)
    chosen = chosen_options(overrides)
    changed = {}
    for key, override, _ in parsed(overrides):
        group, _, name = key.partition(".")
        has = [name.partition(".")[0] in option.settings for option in chosen.get(group, [])]
        if len(has) > 1 and any(has):
            changed[override] = f"++{override.lstrip('+')}"
    return [changed.get(override, override) for override in overrides]


def drop_settings_of_other_options(
    config: DictConfig, overrides: Sequence[str], typed: Sequence[str]
) -> list[str]:
    """Removes from a job's configuration what `spread_over_jobs` added for other options of a group.

    Args:
        config: The job's configuration.
        overrides: The job's.
        typed: The sweep's, as on the command line.

    Returns:
        The overrides that are left.
    """
    chosen, kept = chosen_options(typed), []
    for override in overrides:
        group, _, rest = override.lstrip("+").partition("=")[0].partition(".")
        name = rest.partition(".")[0]
        foreign = any(name in option.settings for option in chosen.get(group, []))
        added = override.startswith("++") and foreign
        known = fields_of(str(config.get(group, {}).get("_target_"))) if added else {}
        if known and name not in known:
            with open_dict(config):
                del config[group][name]
        else:
            kept.append(override.removeprefix("++"))
    return kept
