"""The commands of the papers' documents: each is understood as printed. The list itself, with pass or fail:
python -m tests.launchers.paper_commands"""

from __future__ import annotations

import importlib
import sys

import pytest

from tests.launchers.paper_commands import COMMANDS, ROOT, Command, planned


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.row)
def test_a_papers_command_is_understood(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(ROOT)
    plans = planned(command)
    assert plans
    for words in plans:
        assert words[1] == "-m"
        monkeypatch.setattr(sys, "argv", [*words[2:], "--dry-run"])
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(words[2]).main()
        assert stopped.value.code == 0, capsys.readouterr().err
