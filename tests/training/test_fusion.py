from functools import cache

import pytest
import torch

from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.progress import Silent
from streetvision.data.config import LoaderConfig
from streetvision.data.decode import read_image
from streetvision.models.config import TrainedFusionConfig, ViewsConfig
from streetvision.models.fused import FusedClassifier
from streetvision.training.config import CvfmTrainedConfig, MultiViewMeanConfig
from streetvision.training.features import ViewCache, ViewFeatures
from streetvision.training.fusion import argmax_mcc, evaluate_fusion, fit_fusion, fused_logits
from tests.data.test_datamodule import rows_of
from tests.training.test_features import classifier

LAYOUT = ViewsConfig(rows=1, columns=2)


def config(**changes):
    sizes = {"views": LAYOUT, "trained": TrainedFusionConfig(latent_dim=8), "epochs": 12, "batch_size": 32}
    return CvfmTrainedConfig(**sizes | {"learning_rate": 0.02} | changes)


def model(settings=None):
    torch.manual_seed(0)
    return FusedClassifier(classifier(), (settings or config()).description())


def planted(n, *, seed):
    """In positive images, one view has a shifted feature, of which the head knows nothing."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, LAYOUT.count, 16, generator=generator)
    labels = torch.randint(0, 2, (n,), generator=generator)
    where = torch.randint(0, LAYOUT.count, (n,), generator=generator)
    features[torch.arange(n), where, :4] += 3.0 * labels[:, None]
    mask = torch.ones(n, LAYOUT.count, dtype=torch.bool)
    return ViewFeatures(features, mask, torch.ones(n, LAYOUT.count), features[:, :0], mask[:, :0], labels)


@cache
def fitted():
    return fit()[1]


def fit(**changes):
    settings = config(**changes)
    fused = model(settings)
    result = fit_fusion(fused, planted(160, seed=1), planted(200, seed=2), config=settings, progress=Silent())
    return fused, result


def test_only_the_fusion_changes():
    before = {name: value.clone() for name, value in model().state_dict().items()}
    fused, _ = fit()
    changed = {name for name, value in fused.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"fusion"}
    assert all(p.grad is None for p in fused.classifier.parameters())
    assert {name.split(".")[1] for name in changed} >= {"encoder", "view_scores", "decoders", "correction"}


def test_it_starts_as_the_single_view_and_learns_more_than_the_head_knows():
    fused, result = fit()
    select = planted(200, seed=2)
    mean = evaluate_fusion(FusedClassifier(fused.classifier, MultiViewMeanConfig(views=LAYOUT).description()), select)
    with torch.no_grad():
        single_view = argmax_mcc(fused.classifier.head(select.features[:, 0]), select.labels)
    assert result.history[0]["val_select_mcc"] == pytest.approx(single_view)
    assert result.best_row["val_select_mcc"] > max(single_view, mean["val_select_mcc"]) + 0.3
    assert [row["epoch"] for row in result.history] == list(range(13))


def test_val_select_selects_the_epoch_and_the_model_ends_with_it():
    fused, result = fit()
    best = max(result.history, key=lambda row: (row["val_select_mcc"], -row["val_select_nll"]))
    assert result.best_row == best
    assert evaluate_fusion(fused, planted(200, seed=2))["val_select_nll"] == pytest.approx(best["val_select_nll"])
    fused.fusion.load_state_dict(result.best)
    assert evaluate_fusion(fused, planted(200, seed=2))["val_select_nll"] == pytest.approx(best["val_select_nll"])


def test_the_same_seed_gives_the_same_bits():
    assert all(torch.equal(a, b) for a, b in zip(fit()[1].best.values(), fitted().best.values(), strict=True))
    assert fit(seed=1)[1].history != fitted().history


@pytest.mark.parametrize(
    "change", [{"learning_rate": 0.001}, {"weight_decay": 0.5}, {"reconstruction_weight": 1.0}, {"batch_size": 8}]
)
def test_every_setting_changes_the_result(change):
    assert fit(**change)[1].history[-1] != fitted().history[-1]


def test_a_loss_that_is_not_finite_is_an_error():
    train = planted(40, seed=1)
    train.features[3] = torch.inf
    with pytest.raises(StreetVisionError, match="the loss is nan at epoch 1"):
        fit_fusion(model(), train, planted(20, seed=2), config=config(), progress=Silent())


class TestViewCache:
    def cache(self, folder, fused=None):
        return ViewCache(folder, fused or model(), loader=LoaderConfig(batch_size=7), progress=Silent())

    def test_fused_cached_features_equal_the_model_s_logits(self, scenes, tmp_path):
        fused, rows = model(), rows_of(scenes)
        views = self.cache(tmp_path, fused).features(rows, root=scenes, name="train")
        assert views.labels.tolist() == [row.label for row in rows]
        assert views.features.shape == (16, 3, 16)
        for row, logits in zip(rows, fused_logits(fused, views), strict=True):
            image = fused.prepare(read_image(scenes / row.path))
            with torch.no_grad():
                expected = fused(type(image)(*(part[None] for part in image)))
            torch.testing.assert_close(expected[0], logits, atol=1e-5, rtol=1e-4)

    def test_it_is_computed_once_for_each_layout(self, scenes, tmp_path, monkeypatch):
        first = self.cache(tmp_path).features(rows_of(scenes), root=scenes, name="train")
        other = model(config(views=ViewsConfig(rows=2, columns=2)))
        self.cache(tmp_path, other).features(rows_of(scenes), root=scenes, name="train")
        assert len(list(tmp_path.iterdir())) == 2
        monkeypatch.setattr("streetvision.training.features.evaluation_loader", lambda *_, **__: pytest.fail("again"))
        again = self.cache(tmp_path).features(rows_of(scenes), root=scenes, name="train")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
