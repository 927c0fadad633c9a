"""Numbers computed with the original implementations; `python -m tests.golden` holds ours to them."""
