"""`presel doctor`: what is wrong with a pool, and what a run on it would take and cost."""
