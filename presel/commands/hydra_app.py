"""`presel run` as a Hydra application: one run, or the jobs of a sweep."""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import DictConfig

from presel.console import print_error, run_log, show_messages
from presel.console.arguments import VERBOSITY
from presel.errors import PreselError
from presel.instructions.secrets import refuse_keys
from presel.settings.errors import MISTAKES, UNREADABLE, explain
from presel.settings.overrides import check_overrides, spread_over_jobs
from presel.settings.paths import config_folder
from presel.settings.schema import register


def main(arguments: Sequence[str]) -> int:
    """Runs `presel run`.

    Args:
        arguments: Overrides and flags of Hydra, `-v` or `-q`.

    Returns:
        0.

    Raises:
        PreselError: If the settings or the data are not as they should be.
    """
    levels = {name: level for names, level in VERBOSITY.items() for name in names}
    verbosity = next((levels[one] for one in arguments if one in levels), 0)
    overrides = [one for one in arguments if one not in levels]

    def run_job(config: DictConfig) -> float | None:
        from presel.commands.run import run

        # A launcher of Hydra may have started this process.
        show_messages(verbosity)
        job = HydraConfig.get()
        with run_log(Path(job.runtime.output_dir)):
            try:
                return run(config, overrides)
            except PreselError as error:
                # The other jobs go on, and Hydra raises the first failure at the end.
                if job.mode == RunMode.MULTIRUN:
                    print_error(f"this job failed: {error}")
                raise

    register()
    # Otherwise Hydra prints errors its own way and exits.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # A strategy of one's own may lie in the working directory, as with `python -m`.
    sys.path.append(str(Path.cwd()))
    # Hydra refuses overrides on both sides of a flag.
    flags_first = sorted(overrides, key=lambda one: one not in ("-m", "--multirun"))
    try:
        refuse_keys(overrides)
        check_overrides(overrides)
        sys.argv = ["presel run", *spread_over_jobs(flags_first)]
        hydra.main(config_path=str(config_folder()), config_name="config", version_base="1.3")(run_job)()
    except MISTAKES as error:
        raise PreselError(explain(error, overrides)) from error
    except UNREADABLE as error:
        if not _raised_by(error, "hydra", "omegaconf", "yaml", "codecs"):
            raise
        raise PreselError(explain(error)) from error
    except RuntimeError as error:
        if not _raised_by(error, "submitit"):
            raise
        # What the job printed would follow; it is in its folder.
        said = " ".join(str(error).partition("\nError stream")[0].split())
        raise PreselError(
            f"hydra/launcher: {said}; what jobs ask for is set by hydra.launcher.*, what they "
            "print is in .submitit in the sweep's folder, and the same command continues where it stopped"
        ) from error
    return 0


def _return_value(job: JobReturn) -> Any:
    """As Hydra's own, which first prints `Error executing job with overrides`."""
    if job.status is JobStatus.FAILED:
        raise job._return_value
    return job._return_value


JobReturn.return_value = property(_return_value, JobReturn.return_value.fset)  # type: ignore[assignment, attr-defined]


def _raised_by(error: BaseException, *packages: str) -> bool:
    """Whether an error comes from the code of one of these packages."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals["__name__"]).partition(".")[0] in packages
