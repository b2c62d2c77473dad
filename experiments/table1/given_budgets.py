"""PreSel with task budgets that are known beforehand, to see what budgets by relevance lose."""

from typing import ClassVar

from presel.component import component
from presel.strategies.base import SelectionContext
from presel.strategies.presel import PreSel


@component
class GivenBudgets(PreSel):
    """PreSel's picks under budgets of one's own.

    Attributes:
        shares: The budget's share of each task, of any positive sum.
    """

    needs: ClassVar[tuple[str, ...]] = ("reference", "centrality")

    shares: dict[str, float]

    def weights(self, context: SelectionContext) -> dict[str, float]:
        """The shares, which then sum to 1."""
        total = sum(self.shares.values())
        return {task: share / total for task, share in sorted(self.shares.items())}
