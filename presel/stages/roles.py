"""Roles of the stages behind a result: the names by which programs find them in a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from presel.storage.stage import Stage


def by_role(stages: Sequence[Stage[Any]], named: Mapping[int, str]) -> dict[str, Stage[Any]]:
    """Names every stage.

    A stage without a name of its own is called by the role of the stage that reads it and its kind, as in
    `images.scenes`; where one stage reads two of a kind, they are told apart by their keys.

    Args:
        stages: A stage and all that it depends on, inputs first.
        named: Names that stages have already, by the stage's `id`.

    Returns:
        The stages by role, in their order.
    """
    roles: dict[str, str] = {}  # by key
    for reader in reversed(stages):
        role = roles.setdefault(reader.key, named.get(id(reader), reader.name))
        for source in reader.inputs:
            if source.key not in roles:
                name = named.get(id(source), f"{role}.{source.name}")
                roles[source.key] = f"{name}.{source.key}" if name in roles.values() else name
    return {roles[stage.key]: stage for stage in stages}
