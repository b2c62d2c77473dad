"""Benchmarks, metrics and scores; other programs that evaluate."""
