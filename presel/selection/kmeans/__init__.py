"""K-means: initialization, Lloyd's algorithm, and its variants."""
