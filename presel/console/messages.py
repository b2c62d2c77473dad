"""Messages by `logging`: shown on the terminal, and written to `run.log` in a run's folder."""

import logging
import os
import platform
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.text import Text

from presel.console.escaping import visible
from presel.console.terminal import console

LOG_FILE = "run.log"

# Environment variables whose values are masked, unless they are so short that common words would be.
_SECRETS = re.compile("key|token|secret|password|credential|authorization", re.IGNORECASE)
_SHORTEST_SECRET = 8

_log = logging.getLogger("presel")


class _TerminalHandler(logging.Handler):
    """Shows messages on the console, warnings behind a yellow mark."""

    def emit(self, record: logging.LogRecord) -> None:
        # A bar shows the same, and results are printed.
        if (hasattr(record, "bar") and console.is_terminal) or record.name == "presel.results":
            return
        parts = getattr(record, "styled", (record.getMessage(),))
        mark = (Text("…", "yellow"),) if record.levelno >= logging.WARNING else ()
        console.show(*mark, *parts)


class _FileHandler(logging.FileHandler):
    """Ignores its own write errors: on a full disk, those of the results end the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class _FileFormatter(logging.Formatter):
    """One line per message and per line of a traceback; secrets are masked."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
        values = {value for name, value in os.environ.items() if _SECRETS.search(name)}
        self._secrets = [value for value in values if len(value) >= _SHORTEST_SECRET]

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        return "\n".join(map(visible, text.split("\n")))


_terminal = _TerminalHandler()


def show_messages(verbosity: int = 0) -> None:
    """Shows messages of this package on the terminal.

    Args:
        verbosity: 0 shows what is done; -1 warnings and results alone, and no progress; 1 shows details,
            and the warnings of libraries too.
    """
    _terminal.setLevel({-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}[verbosity])
    _log.setLevel(logging.DEBUG)
    for name in ("", "presel"):
        logging.getLogger(name).removeHandler(_terminal)
    logging.getLogger("" if verbosity > 0 else "presel").addHandler(_terminal)


def silence_libraries() -> None:
    """Keeps warnings and progress bars of libraries from the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # torch.distributed warns if a node's address has no reverse DNS entry.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    _log_warnings()


def _log_warnings() -> None:
    """Sends warnings to logger `py.warnings`, which is silent without a handler."""
    logger = logging.getLogger("py.warnings")
    logger.addHandler(logging.NullHandler())
    # Unlike `logging.captureWarnings`, on one line, and undone by `warnings.catch_warnings`.
    warnings.showwarning = lambda message, category, filename, lineno, file=None, line=None: logger.warning(
        "%s: %s (%s:%s)", category.__name__, message, filename, lineno
    )


def shows_progress() -> bool:
    """Whether messages of level INFO reach the terminal."""
    return _terminal.level <= logging.INFO


def log_to(handler: logging.Handler) -> None:
    """Sends all messages to a handler as well, with time and level."""
    handler.setFormatter(_FileFormatter())
    logging.getLogger().addHandler(handler)
    _log.setLevel(logging.DEBUG)


@contextmanager
def run_log(folder: Path) -> Iterator[None]:
    """Writes all messages to `run.log` in a run's folder while the block runs, and what ended it.

    Warnings of libraries go there too, and not to the terminal. Other handlers of the process stay as they
    are.

    Args:
        folder: The run's folder; an earlier log there is continued.
    """
    folder.mkdir(parents=True, exist_ok=True)
    level, handler = _log.level, _FileHandler(folder / LOG_FILE, encoding="utf-8")
    log_to(handler)
    try:
        with warnings.catch_warnings():
            _log_warnings()
            _log.debug("Python %s on %s: %s", platform.python_version(), platform.platform(), sys.argv)
            yield
    except BaseException as error:
        # The caller reports it on the terminal.
        trace = (type(error), error, error.__traceback__) if isinstance(error, Exception) else None
        text = f"{type(error).__name__}: {error}"
        handler.handle(_log.makeRecord(_log.name, logging.ERROR, "", 0, text, (), trace))
        raise
    finally:
        _log.setLevel(level)
        logging.getLogger().removeHandler(handler)
        handler.close()
