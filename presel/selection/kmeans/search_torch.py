"""Nearest centroids by torch, on a GPU where it sees one."""

import numpy as np
import numpy.typing as npt
import torch

from presel.selection.kmeans.search import Searcher


def searcher(centroids: npt.NDArray[np.float32]) -> Searcher:
    """See `presel.selection.kmeans.search.Backend`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transposed = torch.tensor(centroids, device=device).T.contiguous()
    half_norms = transposed.square().sum(0) / 2

    @torch.inference_mode()
    def nearest(rows: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        # A copy: torch warns of read-only arrays, which memory maps are.
        block = torch.tensor(rows, device=device)
        best, labels = torch.addmm(-half_norms, block, transposed).max(dim=1)
        distances = (block.square().sum(1) - 2 * best).clamp_min(0)
        return labels.cpu().numpy(), distances.cpu().numpy()

    return nearest
