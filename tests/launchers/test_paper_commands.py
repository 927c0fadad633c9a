"""The commands of the papers' documents: each is understood as printed. The list itself, with pass or fail:
python -m tests.launchers.paper_commands"""

from __future__ import annotations

import importlib
import runpy
import sys

import pytest

from tests.launchers.paper_commands import COMMANDS, EVALUATOR, ROOT, Command, planned


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.row)
def test_a_papers_command_is_understood(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    plans = planned(command)
    assert plans
    for words in plans:
        evaluator, module = words[0] == EVALUATOR, words[0] == "-m"
        monkeypatch.setattr(sys, "argv", [*words[module:], *([] if evaluator else ["--dry-run"])])
        with pytest.raises(SystemExit) as stopped:
            if module:
                importlib.import_module(words[1]).main()
            else:
                runpy.run_path(words[0], run_name="__main__")
        said = capsys.readouterr().err
        assert "cannot be read" in said if evaluator else stopped.value.code == 0, said
