"""Recorded behaviour: resolved configs and the losses of short trainings. See `python -m tests.snapshots --help`."""
