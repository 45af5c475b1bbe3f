"""The notebooks run from the first cell to the last, and are kept without outputs."""

from __future__ import annotations

import nbformat
import pytest
from doc_pages import DOCS, page_id

NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=page_id)
def test_notebooks_are_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            compile(cell.source, str(path), "exec")
    assert notebook.cells[0].source.startswith("# ")
    assert len(notebook.cells) <= 20


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=page_id)
def test_notebooks_run(path, tmp_path):
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs
