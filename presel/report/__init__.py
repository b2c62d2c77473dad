"""Tables, statistics and figures over many runs; see `presel report --help`."""
