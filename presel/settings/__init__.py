"""The configuration: its schema, how overrides are read, and how mistakes in it are explained."""
