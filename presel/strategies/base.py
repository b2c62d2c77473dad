"""Base class of selection strategies, and the context that a strategy selects in.

A strategy lists in `needs` the results of the pipeline that it reads. They are computed first, and `select`
reads them as attributes of its context, as in `context.features`; those of the strategy's own `stages` by
their names, as in `context["sharpness"]`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
import pandas as pd

from presel.errors import PreselError
from presel.selection.feature_rows import Features

if TYPE_CHECKING:
    from presel.pipeline import Pipeline
    from presel.storage.stage import Stage

T = TypeVar("T")


class Result(Generic[T]):
    """An attribute of `SelectionContext` that reads the result of its own name."""

    def __set_name__(self, owner: type, name: str) -> None:
        """Called by Python with the attribute's name."""
        self._name = name

    def __get__(self, context: "SelectionContext", owner: type) -> T:
        """The result; see `SelectionContext.__getitem__`."""
        result: T = context[self._name]
        return result


@dataclass(frozen=True, kw_only=True)
class SelectionContext:
    """All that a strategy can see: the pool without its text, and the results that it declares in `needs`.

    Attributes:
        pool: Table of all images: id, image (of a record with several, the first), task.
        budget: Maximum number of images to select, the reference set included.
        rng: The only source of randomness.
        results: The declared results and those of the strategy's own stages, by name.
    """

    pool: pd.DataFrame
    budget: int
    rng: np.random.Generator
    results: Mapping[str, Any]

    features = Result[Features]()
    """Image features: `ids`, and `array`, (n, d) float16 in the order of the ids."""
    clusters = Result[pd.DataFrame]()
    """Clusters of each task's images: id, task, cluster (numbered from 0 in each task)."""
    reference = Result[pd.DataFrame]()
    """Table of the reference set: id. Its instructions are bought already, and count in the budget."""
    relevance = Result[pd.DataFrame]()
    """Scores of the reference samples: id, both losses, el2n, n_tokens (`RelevanceStage`)."""
    swapped_relevance = Result[pd.DataFrame]()
    """The scores of `relevance`, each sample with the image of another one of its task."""
    learning_gain = Result[pd.DataFrame]()
    """Losses of the reference samples before and after tuning on others (`LearningGainStage`).

    Columns: id, task, loss_base, loss_tuned, n_tokens."""
    centrality = Result[pd.DataFrame]()
    """Neighbor centrality, by task and id: id, task, cluster, centrality (NaN in the reference set)."""
    validation = Result[pd.DataFrame]()
    """Held-out samples of the target tasks, without their answers: id, image, task."""

    # Those below take the instructions of the whole pool.

    scores = Result[pd.DataFrame]()
    """The scores of `relevance`, of every sample of the pool."""
    clip_scores = Result[pd.DataFrame]()
    """How well each sample's text fits its image: id, clip_score."""
    clip_features = Result[Features]()
    """CLIP's embeddings of each sample's image and text, concatenated; (n, 2 · d)."""
    multimodal_features = Result[Features]()
    """Features of each sample, image and text, in the form of `features`."""
    visual_necessity = Result[pd.DataFrame]()
    """Losses under the untuned model: id, loss_with_image, loss_without_image, n_tokens."""
    question_features = Result[Features]()
    """Mean token embedding of each sample's first question, of norm 1; 0 where there is no text."""
    self_filter = Result[pd.DataFrame]()
    """Self-Filter's score of each sample: id, score (low is difficult)."""

    def __getitem__(self, name: str) -> Any:
        """A result by its name.

        Raises:
            PreselError: If the strategy does not declare it.
        """
        if name not in self.results:
            raise PreselError(
                f"the strategy reads '{name}' without declaring it; "
                f'add "{name}" to its class attribute `needs`'
            )
        return self.results[name]


# What a strategy can declare in `needs`.
RESULTS = tuple(name for name, value in vars(SelectionContext).items() if isinstance(value, Result))


class Strategy(ABC):
    """A way to select images. Subclasses are dataclasses whose fields are the strategy's settings.

    Attributes:
        name: Its name in tables; the class name in lower case unless given.
        whole_pool: Whether the strategy selects every image, whatever the budget.
        version: Raised when a strategy of this package selects differently; the key of one from elsewhere
            holds its module's text.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1

    whole_pool: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the results to be computed first, attributes of `SelectionContext`.

        A class attribute in most strategies; a property where they depend on the settings.
        """
        return ()

    def __init_subclass__(cls) -> None:
        """Names a class that does not name itself."""
        if "name" not in cls.__dict__:
            cls.name = cls.__name__.lower()

    @property
    def unused_settings(self) -> frozenset[str]:
        """Names of the settings that have no effect beside the others; they are not part of the key."""
        return frozenset()

    def stages(self, pipeline: "Pipeline") -> "dict[str, Stage[Any]]":
        """The strategy's own stages, to be computed before it selects; see `docs/how_to/own_stage.md`.

        Args:
            pipeline: Its properties are the stages that they may be built on.

        Returns:
            Stages by the names under which their results appear in the context.
        """
        return {}

    @abstractmethod
    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Selects images.

        Returns:
            Table with the column `id`, the selected images, and any further columns worth keeping about
            them, or about images that are not selected (then with a boolean column `selected`).
        """


def checked_choice(choice: Any, method: str) -> pd.DataFrame:
    """The table that a strategy returned, with row numbers as its index and a boolean column `selected`.

    Args:
        choice: What was returned.
        method: The strategy's class and method, for messages.

    Raises:
        PreselError: If it is no table with one row for each image, its id, and whether it is selected.
    """
    if not isinstance(choice, pd.DataFrame) or "id" not in choice:
        raise PreselError(
            f"{method} returned {type(choice).__name__}, not a table (pandas.DataFrame) with a column `id`; "
            "return one row for each selected image"
        )
    if choice.columns.has_duplicates:
        name = choice.columns[choice.columns.duplicated()][0]
        raise PreselError(f"{method} returned two columns '{name}'; rename one")
    table: pd.DataFrame = choice.reset_index(drop=True)
    repeated = table.loc[table["id"].duplicated(), "id"]
    if len(repeated):
        raise PreselError(
            f"{method} returned image '{repeated[repeated.index[0]]}' twice; return one row for each image"
        )
    if "selected" not in table:
        return table.assign(selected=True)
    selected = table["selected"]
    if selected.dtype != bool and not all(isinstance(value, (bool, np.bool_)) for value in selected):
        raise PreselError(
            f"{method} returned a column `selected` with other values than True and False; correct it"
        )
    return table.assign(selected=selected.astype(bool))
