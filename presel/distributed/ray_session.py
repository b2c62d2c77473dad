"""The connection to Ray: Ray on this machine, started for a run without this process's secrets, or a cluster.

Ray has one connection a process, so that this module keeps no object of its own.
"""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from presel.errors import PreselError
from presel.selection.threads import cpu_count

# What processes of Ray inherit from the one that starts it, beside what has a secret's name.
_INHERITED = re.compile(
    "PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_.*|TZ|TMPDIR|LD_LIBRARY_PATH|VIRTUAL_ENV|PYTHON.*|CONDA_.*|OMP_.*|MKL_.*"
    "|OPENBLAS_.*|CUDA_.*|NVIDIA_.*|HF_.*|TRANSFORMERS_.*|TORCH_.*|XDG_.*|RAY_.*|COVERAGE_.*"
)
_SECRET = re.compile("key|token|secret|pass|pwd|pw$|pat$|cred|auth(?!_mode)", re.IGNORECASE)
# The smallest that Ray takes: results are files, and nothing large passes through it.
_OBJECT_STORE_BYTES = 80 * 2**20

_ANSWER_WITHIN_S = 10.0
# No reports to Ray's makers; no warning about GPUs that an actor takes none of; workers as important to the
# system as this process, where Ray would have them wait for all others.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}

_ours = False
_address: str | None = None


def connect(address: str | None) -> None:
    """Connects to a cluster, or starts Ray on this machine.

    A connection to the same cluster is kept, and so is one that others made in this process.

    Args:
        address: HOST:PORT or `auto`; None starts Ray.

    Raises:
        PreselError: If no cluster answers there, or one of another version, or Ray does not start.
    """
    global _ours, _address
    if _ours and address != _address:
        disconnect()
    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        with _unchanged_signals():
            if address is None:
                with _only_inherited():
                    ray.init(
                        "local",
                        num_cpus=cpu_count(),
                        object_store_memory=_OBJECT_STORE_BYTES,
                        include_dashboard=False,
                        **options,
                    )
            else:
                if address != "auto":
                    _check_answers(address)
                ray.init(address, **options)
    # Ray raises whatever it likes, and plain exceptions among it.
    except Exception as error:
        reason = " ".join(str(error).split())
        if address is None:
            raise PreselError(f"executor=ray: Ray does not start on this machine ({reason})") from error
        raise PreselError(
            f"executor.address={address}: Ray cannot be reached there ({reason}); give the HOST:PORT that "
            "`ray start --head` prints, `auto` for the cluster of this machine, or null to start Ray here; "
            "if the cluster asks for a token, set RAY_AUTH_MODE=token as there"
        ) from error
    # What it says of workers that end would be printed among the results, in spite of `log_to_driver`.
    ray._private.worker._worker_logs_enabled = False
    _ours, _address = True, address


def disconnect() -> None:
    """Ends the connection that `connect` made, and Ray if it started that."""
    global _ours
    if _ours:
        _ours = False
        ray.shutdown()
        # Ray that is started here has a token, which this process would go on to ask of clusters without one.
        ray._raylet.Config.initialize("")
        ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


def _check_answers(address: str) -> None:
    """Raises an `OSError` if nothing answers at HOST:PORT, where Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise ValueError("this is no HOST:PORT")
    socket.create_connection((host, int(port)), timeout=_ANSWER_WITHIN_S).close()


@contextmanager
def _only_inherited() -> Iterator[None]:
    """Hides all other environment variables from the processes that Ray starts in the block."""
    before = dict(os.environ)
    for name in before:
        if not _INHERITED.fullmatch(name) or _SECRET.search(name):
            del os.environ[name]
    os.environ |= _SETTINGS
    try:
        yield
    finally:
        # Ray sets some too, `PYTHONBREAKPOINT` among them.
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ |= before


@contextmanager
def _unchanged_signals() -> Iterator[None]:
    """Keeps this process's handler of SIGTERM, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
