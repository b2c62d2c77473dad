"""The steps of the method, one a file; `presel.pipeline` strings them together."""
