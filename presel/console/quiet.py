"""What libraries say about themselves: warnings go to the log, progress bars are off."""

import logging
import os
import warnings
from typing import TextIO


def silence_libraries() -> None:
    """Keeps third-party warnings and progress bars from the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # torch.distributed warns if a node's address has no reverse DNS entry.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    log_warnings()


def log_warnings() -> None:
    """Sends warnings to logger `py.warnings`, which is silent without a handler."""
    logger = logging.getLogger("py.warnings")
    logger.addHandler(logging.NullHandler())

    def log(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        logger.warning("%s: %s (%s:%s)", category.__name__, message, filename, lineno)

    warnings.showwarning = log
