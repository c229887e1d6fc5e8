import pytest
import torch

from streetvision.contracts.progress import Silent
from streetvision.contracts.split_contracts import Split
from streetvision.data.augmentation import get_val_transforms
from streetvision.data.config import LoaderConfig
from streetvision.data.decode import read_image
from streetvision.io.tensors import load_state
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import ModelConfig
from streetvision.models.module import load_classifier
from streetvision.training.features import FeatureCache
from streetvision.training.scoring import score_rows
from tests.data.test_datamodule import rows_of


def classifier(image_size=32, **changes):
    torch.manual_seed(0)
    backbone = BackboneConfig(source="random", **{"width": 16, "depth": 1, "heads": 2} | changes)
    return load_classifier(ModelConfig(backbone=backbone, image_size=image_size)).eval()


def cache(folder, model=None):
    return FeatureCache(folder, model or classifier(), loader=LoaderConfig(batch_size=6), progress=Silent())


@pytest.fixture
def reference(scenes):
    def compute(model):
        transform = get_val_transforms(image_size=32)
        images = torch.stack([transform(read_image(scenes / row.path)) for row in rows_of(scenes)])
        with torch.inference_mode():
            return model.embed(images), model(images)

    return compute


def test_cached_features_are_the_classifier_s_features(scenes, tmp_path, reference):
    model = classifier()
    features, labels = cache(tmp_path, model).features(rows_of(scenes), root=scenes, name="train")
    torch.testing.assert_close(features, reference(model)[0], rtol=1e-4, atol=1e-5)
    assert labels.tolist() == [row.label for row in rows_of(scenes)]


def test_features_are_computed_once(scenes, tmp_path, monkeypatch):
    first, _ = cache(tmp_path).features(rows_of(scenes), root=scenes, name="train")
    monkeypatch.setattr(
        "streetvision.training.features.apply_to_batches", lambda *_, **__: pytest.fail("computed again")
    )
    again, _ = cache(tmp_path).features(rows_of(scenes), root=scenes, name="train")
    assert torch.equal(first, again)


@pytest.mark.parametrize("change", [{"seed": 1}, {"image_size": 48}, {"heads": 1}])
def test_another_backbone_or_size_is_another_file(scenes, tmp_path, change):
    for model in (classifier(), classifier(**change)):
        cache(tmp_path, model).features(rows_of(scenes), root=scenes, name="train")
    assert len(list(tmp_path.iterdir())) == 2


def test_only_new_images_are_computed(scenes, tmp_path):
    rows = rows_of(scenes)
    cache(tmp_path).features(rows[:-1], root=scenes, name="train")
    features, labels = cache(tmp_path).features(rows[::-1], root=scenes, name="train")
    assert sorted(len(load_state(path)["features"]) for path in tmp_path.iterdir()) == [1, len(rows) - 1]
    expected, _ = cache(tmp_path / "other").features(rows, root=scenes, name="train")
    torch.testing.assert_close(features, expected.flip(0), rtol=1e-4, atol=1e-5)
    assert labels.tolist() == [row.label for row in rows[::-1]]


def test_scores_hold_logits_labels_and_the_digest_of_the_model(scenes, reference):
    model, rows = classifier(), rows_of(scenes)
    scores = score_rows(
        model,
        rows,
        root=scenes,
        split=Split.VAL_CALIB,
        model_sha256="a" * 64,
        loader=LoaderConfig(batch_size=6),
        progress=Silent(),
    )
    torch.testing.assert_close(scores.logits, reference(model)[1], rtol=1e-4, atol=1e-5)
    assert scores.labels.tolist() == [row.label for row in rows]
    assert scores.reference.model_sha256 == "a" * 64
