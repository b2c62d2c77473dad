"""Comparison of runs: grouping, statistics, tables, figures, gallery; see `presel report --help`."""
