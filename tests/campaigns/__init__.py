"""Campaigns against the real program: kills, damaged results, hostile servers, bad inputs.

`make test` leaves them out, since they take long. `python -m tests.campaigns` runs them;
docs/concepts/reliability.md says what they showed.
"""
