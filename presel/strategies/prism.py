"""PRISM: the images that are least like all others in the language model's own space."""

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from presel.component import component
from presel.selection import FeatureRows
from presel.selection.arrays import Float32Matrix, FloatMatrix, FloatVector, round_for_ties
from presel.strategies.base import SelectionContext, Strategy

if TYPE_CHECKING:
    from presel.pipeline import Pipeline
    from presel.storage.stage import Stage

# A feature nearer to the mean than this share of the mean's norm differs from it by rounding only.
_NEGLIGIBLE = 1e-6


@component
class Prism(Strategy):
    """Least redundant images (PRISM; arXiv 2502.12119, version 4, 2026), which ignores tasks.

    Reads no instruction: an image's feature is the mean of its tokens' hidden states in the untuned model
    that is tuned later, at a shallow layer (`ImageTokenEncoder`).

    Attributes:
        layer: Layers of the language model that the image's tokens pass. The paper chooses a shallow one; 1
            is our choice.
    """

    layer: Annotated[int, Field(ge=1)] = 1

    def stages(self, pipeline: "Pipeline") -> "dict[str, Stage[Any]]":
        """The features of the images' tokens."""
        return {"image_tokens": pipeline.image_tokens_at(self.layer)}

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Takes the images of least redundancy; equal ones go by id.

        Returns:
            One row per image: id, redundancy, selected.
        """
        ids, rows = context["image_tokens"].by_id()
        redundancy = round_for_ties(redundancies(rows))
        selected = np.zeros(len(ids), dtype=bool)
        selected[np.argsort(redundancy, kind="stable")[: context.budget]] = True
        return pd.DataFrame({"id": ids, "redundancy": redundancy, "selected": selected})


def redundancies(rows: FeatureRows) -> FloatVector:
    """Mean correlation of each image with all others, in three passes over the features.

    With the mean feature μ and u = (f − μ) / ‖f − μ‖, the mean of u_i · u_j over the n − 1 others j is
    (u_i · Σ u − 1) / (n − 1). A feature equal to μ has no direction: its u is 0.

    Args:
        rows: Features, (n, d).

    Returns:
        Shape (n,), from -1 to 1; 0 for a single image.
    """
    mean = sum(block.sum(axis=0, dtype=np.float64) for _, block in rows.blocks()) / len(rows)  # (d,)
    smallest = _NEGLIGIBLE * np.linalg.norm(mean)

    def directions(block: Float32Matrix) -> FloatMatrix:
        centered = block - mean  # (m, d)
        norms = np.linalg.norm(centered, axis=1, keepdims=True)  # (m, 1)
        units: FloatMatrix = np.divide(centered, norms, out=np.zeros_like(centered), where=norms > smallest)
        return units

    total = sum(directions(block).sum(axis=0) for _, block in rows.blocks())  # (d,)
    result = np.empty(len(rows))
    for place, block in rows.blocks():
        units = directions(block)
        result[place] = units @ total - np.einsum("ij,ij->i", units, units)
    return result / max(len(rows) - 1, 1)
