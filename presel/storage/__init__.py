"""Results on disk: stages, the content-addressed store, shards, atomic files, digests."""
