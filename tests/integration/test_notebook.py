"""The notebook runs from a quickstart's folders, and is stored without outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import toys

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed (requirements/dev.txt)")
ROOT = Path(__file__).parents[2]


def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "notebooks/tour.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    toys.save_tokenizer(tmp_path / "results/quickstart/tokenizer")
    toys.save_generator(tmp_path / "results/quickstart/gpt")
    toys.write_images(tmp_path / "data/emoji/val")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [out for cell in code for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 3
    assert "".join(out.get("text", "") for out in code[-1].outputs).count(" dB") == 5
