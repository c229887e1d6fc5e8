"""The notebooks, as scripts: their code cells in order, with the settings of the tests in place of the first one."""

import json
import shutil
from pathlib import Path

import pytest

from tests.api.test_runs import FAST

NOTEBOOKS = Path(__file__).parents[1] / "examples" / "notebooks"


def run_cells(name, **settings):
    """Run the code of a notebook; `settings` replace the cell that is tagged `parameters`."""
    names, replaced = {"__name__": "__main__"}, 0
    for number, cell in enumerate(json.loads((NOTEBOOKS / name).read_text())["cells"]):
        if cell["cell_type"] != "code":
            continue
        if "parameters" in cell["metadata"].get("tags", []):
            own = {}
            exec("".join(cell["source"]), own)  # noqa: S102 (our own notebook)
            assert settings.keys() == {key for key in own if key.isupper()}
            names |= settings
            replaced += 1
        else:
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), names)  # noqa: S102
    assert replaced == 1
    return names


def test_the_notebooks_hold_no_output():
    for path in NOTEBOOKS.glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert len(list(NOTEBOOKS.glob("*.ipynb"))) == 2


@pytest.mark.slow
def test_own_photos_become_a_bundle(scenes, tmp_path, capsys):
    photos = shutil.copytree(scenes, tmp_path / "photos")
    settings = {**FAST, "cross_validation": {"folds": 2, "repeats": 1, "learning_curve": [], "n_resamples": 100}}
    names = run_cells("photos_to_bundle.ipynb", PHOTOS=str(photos), RUN=str(tmp_path / "run"), SETTINGS=settings)
    assert (tmp_path / "run" / "export" / "bundle.json").is_file()
    assert names["result"].images == 160
    assert str(names["evaluation"].report) in capsys.readouterr().out


def test_the_probabilities_of_a_bundle_are_read(finished_run, scenes, tmp_path, capsys):
    run = shutil.copytree(finished_run, tmp_path / "run")
    names = run_cells("probabilities_and_certificates.ipynb", RUN=str(run), PHOTOS=str(scenes))
    out = capsys.readouterr().out
    assert f"images      {len(names['images'])}" in out
    assert "nothing is certified" in out
