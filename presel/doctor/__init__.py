"""`presel doctor`: checks a pool, and estimates the time and cost of a run on it."""
