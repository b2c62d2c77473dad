"""Names of the files in a run's folder, for those who do not read what is in them."""

FILE = "run.json"
CONFIG = ".hydra/config.yaml"
