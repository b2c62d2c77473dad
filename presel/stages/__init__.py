"""The steps of the method, one per file; `presel.pipeline` connects them."""
