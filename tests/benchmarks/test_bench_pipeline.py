import re

import pytest

from benchmarks import baseline_script as loose_script
from benchmarks import bench_pipeline
from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.progress import Silent
from streetvision.synthetic.scenes import SceneConfig, write_scenes


def test_both_start_from_the_same_images_and_the_repeat_from_a_finished_run(monkeypatch):
    ran = []
    monkeypatch.setattr(bench_pipeline, "IMAGES", 4)
    monkeypatch.setattr(bench_pipeline, "_python", lambda *words: ran.append(words))
    monkeypatch.setattr(
        bench_pipeline, "interleaved_median", lambda ours, theirs, repeats: (ours(), theirs(), 1.0, 2.0)[2:]
    )
    assert [figure.ratio for figure in bench_pipeline.bench_pipeline(Silent())] == [0.5, 0.5]
    (*_, scenes, first), (*_, bundle), (_, script, folder, _), again, fresh, _ = ran
    assert (script, scenes) == ("benchmarks.baseline_script", f"data.root={folder}")
    assert bundle == f"{first.removeprefix('run_dir=')}/export"
    assert again == ran[0]
    assert fresh != ran[0]


def test_the_script_learns_from_scenes(tmp_path, capsys):
    write_scenes(tmp_path, SceneConfig(count=60), Silent())
    loose_script.main(tmp_path, tmp_path / "out.pt")
    assert (tmp_path / "out.pt").is_file()
    assert float(re.fullmatch(r"MCC (\S+)\n", capsys.readouterr().out)[1]) > 0.3


def test_a_command_that_fails_is_told():
    with pytest.raises(StreetVisionError, match=r"evaluate .*there is no bundle"):
        bench_pipeline._python("-m", "streetvision", "evaluate", "--bundle", "nowhere")
