"""PreSel with task budgets that are known beforehand, to see what budgets by relevance lose."""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from presel.component import STRICT
from presel.strategies.base import Given
from presel.strategies.presel import PreSel


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GivenBudgets(PreSel):
    """PreSel's picks under budgets of one's own.

    Attributes:
        shares: The budget's share of each task, of any positive sum.
    """

    needs: ClassVar[tuple[str, ...]] = ("reference", "centrality")

    shares: dict[str, float]

    def weights(self, given: Given) -> dict[str, float]:
        """The shares, which then sum to 1."""
        total = sum(self.shares.values())
        return {task: share / total for task, share in sorted(self.shares.items())}
