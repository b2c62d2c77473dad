"""The names and arguments that users' own code relies on."""

import inspect
from collections.abc import Callable
from importlib import import_module

import pytest

NAMES: dict[str, Callable[..., None]] = {
    "presel.importance.instruction_relevance": lambda loss_with_question, loss_without_question: None,
    "presel.importance.task_scores": lambda irs, tasks: None,
    "presel.importance.task_weights": lambda scores, tau=None: None,
    "presel.selection.allocate_tasks": lambda weights, sizes, budget, mode="exact": None,
    "presel.selection.allocate_clusters": lambda available, budget, mode="exact", totals=None: None,
    "presel.selection.cluster": lambda features, n_clusters, seed=0, backend="auto": None,
    "presel.selection.neighbor_centrality": lambda features, k=5: None,
    "presel.selection.select_from_task": lambda features, labels, available, budget, k=5, mode="exact": None,
    "presel.data.prompts.render": lambda conversations, template="vicuna_v1", question=True: None,
    "presel.select": lambda images, tasks, *, weights=None, features=None, budget, k=5, seed=0: None,
    "presel.compose": lambda overrides: None,
    "presel.run": lambda overrides: None,
    "presel.load_run": lambda folder: None,
}


@pytest.mark.parametrize("name", NAMES)
def test_public_functions_keep_their_arguments(name: str) -> None:
    module, _, function = name.rpartition(".")
    promised = inspect.signature(NAMES[name]).parameters.values()
    found = inspect.signature(getattr(import_module(module), function)).parameters
    for argument in promised:
        assert found[argument.name].kind == argument.kind
        if argument.default is not argument.empty:
            assert found[argument.name].default == argument.default
    by_position = [one.name for one in promised if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert list(found)[: len(by_position)] == by_position
    # What was added since may be left out.
    added = [one for key, one in found.items() if key not in {one.name for one in promised}]
    assert all(one.default is not one.empty for one in added)
