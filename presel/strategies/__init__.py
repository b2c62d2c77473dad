"""Selection strategies: one class here and one YAML in `conf/strategy` for each."""
