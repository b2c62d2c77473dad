"""What every configurable part shares: its arguments are checked when it is made."""

from pydantic import ConfigDict

# An unknown argument or one of the wrong type stops the run at start, before any work.
STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
