"""Numbers computed with the original implementations, and the runner that holds ours to them: `python -m tests.golden`."""
