"""`presel run` as a Hydra application: one run, or the jobs of a sweep."""

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from presel.console import console, print_error, run_log, show_messages
from presel.console.arguments import VERBOSITY
from presel.errors import PreselError
from presel.instructions.secrets import check_environment, refuse_keys, refuse_saved_keys
from presel.settings.errors import MISTAKES, UNREADABLE, explain
from presel.settings.options import config_folder
from presel.settings.overrides import check_overrides, has_sweep_flag, is_sweep
from presel.settings.saved import save_configuration
from presel.settings.schema import check, register
from presel.settings.sweeps import drop_settings_of_other_options, spread_over_jobs
from presel.storage.run_folder import RUN_FILE, finished_jobs

# Hydra's flags that it does not take beside -m.
_INSTEAD_OF_SWEEPING = frozenset(
    {"--run", "-r", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc", "--hydra-help"}
)


def run_app(arguments: Sequence[str]) -> None:
    """Composes the configuration of every job and runs it.

    Args:
        arguments: Overrides and flags of Hydra, `-v` or `-q`.

    Raises:
        PreselError: If the configuration or the data is invalid.
    """
    levels = {name: level for names, level in VERBOSITY.items() for name in names}
    verbosity = next((levels[one] for one in arguments if one in levels), 0)
    overrides = [one for one in arguments if one not in levels]

    failures: set[str] = set()

    def run_job(config: DictConfig) -> float | None:
        # A launcher of Hydra may have started this process.
        show_messages(verbosity)
        job = HydraConfig.get()
        with run_log(Path(job.runtime.output_dir)):
            try:
                return _run(config, overrides)
            except PreselError as error:
                # The other jobs continue, and Hydra raises the first failure at the end.
                if job.mode == RunMode.MULTIRUN and str(error) not in failures:
                    failures.add(str(error))
                    print_error(f"job {job.job.num} failed: {error}")
                raise

    register()
    # Otherwise Hydra prints errors its own way and exits.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Hydra refuses overrides on both sides of a flag.
    flags_first = sorted(overrides, key=lambda one: "=" in one and not one.startswith("-"))
    try:
        refuse_keys(overrides)
        check_overrides(overrides)
        sys.argv = ["presel run", *spread_over_jobs([*_sweep_flag(overrides), *flags_first])]
        hydra.main(config_path=str(config_folder()), config_name="config", version_base="1.3")(run_job)()
    except MISTAKES as error:
        raise PreselError(explain(error, overrides, may_sweep=True)) from error
    except UNREADABLE as error:
        if not _raised_by(error, "hydra", "omegaconf", "yaml", "codecs"):
            raise
        raise PreselError(explain(error)) from error
    except RuntimeError as error:
        if not _raised_by(error, "submitit"):
            raise
        # What the job printed would follow; it is in its folder.
        reason = " ".join(str(error).partition("\nError stream")[0].split())
        raise PreselError(
            f"hydra/launcher: {reason}; what jobs ask for is set by hydra.launcher.*, what they "
            "print is in .submitit in the sweep's folder, and the same command continues where it stopped"
        ) from error


def _sweep_flag(arguments: Sequence[str]) -> list[str]:
    """`-m` for an experiment that is a sweep, whose errors Hydra explains as those of one run otherwise."""
    given = {one.partition("=")[0] for one in arguments} & _INSTEAD_OF_SWEEPING
    return ["-m"] if is_sweep(arguments) and not has_sweep_flag(arguments) and not given else []


def _run(config: DictConfig, overrides: Sequence[str]) -> float | None:
    """Runs one configuration as Hydra's job.

    Args:
        config: The configuration.
        overrides: Those of the command line, which Hydra mixes with those of files.

    Returns:
        The mean score, which a search can maximize; None for a run that ends before the evaluation.
    """
    hydra_config = HydraConfig.get()
    _refuse_saved_keys(config)
    folder = Path(hydra_config.runtime.output_dir)
    sweeping = hydra_config.mode == RunMode.MULTIRUN
    task_overrides = list(hydra_config.overrides.task)
    if sweeping:
        task_overrides = drop_settings_of_other_options(config, task_overrides, overrides)
    # Reports count a run that fails as unfinished; an earlier one in its folder stays until all is checked.
    if not (folder / RUN_FILE).exists():
        save_configuration(folder, config, hydra_config)
    check(config)
    # After Hydra has composed, since stages and strategies take a while to import.
    from presel.commands.execution import execute
    from presel.report.summary import print_summary

    if config.until != "evaluation" and "direction" in hydra_config.sweeper:
        raise PreselError(f"until={config.until}: a search needs scores; set until=evaluation")
    check_environment(hydra_config.job.env_set, overrides)
    if sweeping:
        console.print()
        console.print(" ".join(task_overrides), style="bold")
    record = execute(config, folder, task_overrides, overrides, hydra_config)
    if record.tuned and not sweeping:
        print_summary(record.summary())
    for role, path in record.paths.items():
        what = "training file" if role == "instructions" else path.stem
        console.print(f"{what:<29} {path}")
    console.print(f"{'run, its config and manifest':<29} {record.folder}")
    if not sweeping:
        console.print(f"{'to see what it chose':<29} presel view {shlex.quote(str(record.folder))}")
    return record.mean if record.tuned else None


def _refuse_saved_keys(config: DictConfig) -> None:
    """Refuses a configuration that holds a key, and deletes what Hydra saved of a sweep's."""
    settings: Any = OmegaConf.to_container(config, resolve=False)
    try:
        refuse_saved_keys(settings)
    except PreselError:
        (Path(HydraConfig.get().sweep.dir) / "multirun.yaml").unlink(missing_ok=True)
        raise


class SweepSummary(Callback):
    """Hydra's callback that summarizes a sweep at its end."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Notes the jobs of earlier sweeps in the same folder."""
        self._earlier = finished_jobs(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Summarizes the jobs."""
        from presel.report.summary import summarize_sweep

        summarize_sweep(Path(config.hydra.sweep.dir), self._earlier)


def _return_value(job: JobReturn) -> Any:
    """Replaces Hydra's own property, which prints `Error executing job with overrides` before it raises."""
    if job.status is JobStatus.FAILED:
        raise job._return_value
    return job._return_value


JobReturn.return_value = property(_return_value, JobReturn.return_value.fset)  # type: ignore[assignment, attr-defined]


def _raised_by(error: BaseException, *packages: str) -> bool:
    """Whether an error comes from the code of one of these packages."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals["__name__"]).partition(".")[0] in packages
