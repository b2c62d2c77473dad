"""Clustered vectors for tests."""

import numpy as np
import numpy.typing as npt


def mixture(
    n: int, dimension: int, components: int, seed: int = 0, spread: float = 0.5
) -> npt.NDArray[np.float32]:
    """Draws unit vectors around random centers."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((components, dimension), dtype=np.float32)
    noise = rng.standard_normal((n, dimension), dtype=np.float32)
    vectors = centers[rng.integers(components, size=n)] + np.float32(spread) * noise
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
