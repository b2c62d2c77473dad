"""What a strategy is given, and what it gives back."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import pandas as pd

from presel.errors import PreselError
from presel.selection.feature_rows import Features

T = TypeVar("T")


@dataclass(frozen=True)
class Given:
    """All that a strategy can see: the pool without its text, and the results it declared in `needs`.

    Attributes:
        pool: Table of all images: id, image, task.
        budget: How many images may be chosen, the reference set included.
        random: The only source of chance.
    """

    pool: pd.DataFrame
    budget: int
    random: np.random.Generator
    _results: Mapping[str, Any]

    @property
    def reference(self) -> pd.DataFrame:
        """Table of the reference set: id. Its instructions are paid for; they count in the budget."""
        return self._declared("reference", pd.DataFrame)

    @property
    def relevance(self) -> pd.DataFrame:
        """Scores of the reference samples: id, both losses, el2n, n_tokens (`RelevanceStage`)."""
        return self._declared("relevance", pd.DataFrame)

    @property
    def scores(self) -> pd.DataFrame:
        """The same scores of every sample of the pool; they take all instructions."""
        return self._declared("scores", pd.DataFrame)

    @property
    def clip_scores(self) -> pd.DataFrame:
        """How well every sample's text fits its image: id, clip_score; it takes all instructions."""
        return self._declared("clip_scores", pd.DataFrame)

    @property
    def clip_features(self) -> Features:
        """CLIP's embeddings of every sample's image and text in a row; they take all instructions."""
        return self._declared("clip_features", Features)

    @property
    def multimodal_features(self) -> Features:
        """Features of every sample, image and text, in the form of `features`; they take all instructions."""
        return self._declared("multimodal_features", Features)

    @property
    def self_filter(self) -> pd.DataFrame:
        """Self-Filter's score of every sample: id, score (low is difficult); it takes all instructions."""
        return self._declared("self_filter", pd.DataFrame)

    @property
    def features(self) -> Features:
        """Image features: `ids`, and `array` (n, d) float16 in the order of the ids."""
        return self._declared("features", Features)

    @property
    def clusters(self) -> pd.DataFrame:
        """Clusters of each task's images: id, task, cluster (counted from 0 in each task)."""
        return self._declared("clusters", pd.DataFrame)

    @property
    def centrality(self) -> pd.DataFrame:
        """Neighbor centrality, by task and id: id, task, cluster, centrality (NaN in the reference set)."""
        return self._declared("centrality", pd.DataFrame)

    def _declared(self, name: str, kind: type[T]) -> T:
        if name not in self._results:
            raise PreselError(
                f"the strategy reads '{name}' without declaring it; "
                f'add "{name}" to its class attribute `needs`'
            )
        result = self._results[name]
        assert isinstance(result, kind)
        return result


# What a strategy can declare in `needs`.
RESULTS = tuple(name for name, value in vars(Given).items() if isinstance(value, property))


class Strategy(ABC):
    """A way to choose images. Subclasses are dataclasses whose fields are the strategy's settings.

    Attributes:
        name: What tables call it; the class name in lower case unless given.
        needs: Results to be computed first, out of `reference`, `relevance`, `features`, `clusters`,
            `centrality`, and those that take the instructions of the whole pool: `scores`, `clip_scores`,
            `clip_features`, `multimodal_features`, `self_filter`.
        whole_pool: Whether the strategy takes every image, whatever the budget.
        version: Raised when the code of a strategy of this package comes to choose otherwise; one from
            elsewhere is told apart by its module's text.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1

    needs: ClassVar[tuple[str, ...]] = ()
    whole_pool: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Names a class that does not name itself."""
        if "name" not in cls.__dict__:
            cls.name = cls.__name__.lower()

    @abstractmethod
    def select(self, given: Given) -> pd.DataFrame:
        """Chooses images.

        Returns:
            Table with the column `id`, the chosen images, and any further columns worth keeping
            about them or about images not chosen (then with a boolean column `selected`).
        """
