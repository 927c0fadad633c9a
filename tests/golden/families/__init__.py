"""One file per family of fixtures: `matches(fixture)` says whether it is one, `check(fixture, report)` compares."""
