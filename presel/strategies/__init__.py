"""Selection strategies: each one class here and one YAML in `conf/strategy`."""
