"""The configuration that a run leaves in its folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from presel.storage.run_folder import CONFIG_FILE

if TYPE_CHECKING:
    from hydra.conf import HydraConf


def save_configuration(folder: Path, config: DictConfig, hydra: "HydraConf | None" = None) -> None:
    """Saves a run's configuration where Hydra would, and Hydra's own beside it, in place of earlier ones."""
    file = folder / CONFIG_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, file)
    for name in ("hydra.yaml", "overrides.yaml"):
        file.with_name(name).unlink(missing_ok=True)
    if hydra is not None:
        OmegaConf.save({"hydra": hydra}, file.with_name("hydra.yaml"))
        OmegaConf.save(hydra.overrides.task, file.with_name("overrides.yaml"))
