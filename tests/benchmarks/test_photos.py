import io

import numpy as np
from PIL import Image

from benchmarks import bench_photos
from streetvision import load_bundle
from streetvision.bundle.format import read_bundle, read_classifier_description


def test_every_way_to_decode_gives_the_size_of_the_input(monkeypatch):
    jpeg = io.BytesIO()
    Image.fromarray(np.zeros((480, 640, 3), dtype=np.uint8)).save(jpeg, "JPEG")
    results = {}

    def once(functions, **_):
        results["ours"], results["by hand"], results["decoder"] = (function() for function in functions[:3])
        return [1.0] * len(functions)

    monkeypatch.setattr(bench_photos, "interleaved_medians", once)
    figures = bench_photos._decoding("a photo", jpeg.getvalue(), (96, 128))
    assert all("decoded to 160x120" in figure.name for figure in figures)
    assert results["ours"].shape == (3, 96, 128)
    assert results["by hand"].shape == (96, 128, 3)
    assert results["decoder"].shape == (120, 160, 3)


def test_the_bundle_of_version_1_differs_in_its_preprocessing_only(finished_run, tmp_path):
    bundle = read_bundle(finished_run / "export")
    older = bench_photos._version_1(bundle, tmp_path / "older")
    assert (read_classifier_description(bundle).preprocessing, read_classifier_description(older).preprocessing) == (
        2,
        1,
    )
    assert older.manifest.policy == bundle.manifest.policy
    assert load_bundle(older.folder).model.decode_size((3024, 4032)) == (3024, 4032)
