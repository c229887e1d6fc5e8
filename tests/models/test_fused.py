import pytest
import torch
from pydantic import ValidationError

from streetvision.contracts.errors import ArtifactError
from streetvision.io.tensors import save_tensors
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import FusionConfig, FusionDescription, ModelConfig, TrainedFusionConfig, ViewsConfig
from streetvision.models.fused import FusedClassifier, load_fused
from streetvision.models.fusion import FUSIONS, influence
from streetvision.models.module import load_classifier
from streetvision.models.multi_view import Views, content_share

CUT = ViewsConfig(rows=1, columns=3)
TRAINED = TrainedFusionConfig(latent_dim=8)
DESCRIPTIONS = {
    "multiview_mean": FusionDescription(mode="multiview_mean", views=CUT),
    **{
        name: FusionDescription(mode="cvfm_inference", views=CUT, inference=FusionConfig(mode=name)) for name in FUSIONS
    },
    "cvfm_trained": FusionDescription(mode="cvfm_trained", views=CUT, trained=TRAINED),
    "cvfm_trained, attending": FusionDescription(
        mode="cvfm_trained", views=CUT, trained=TrainedFusionConfig(latent_dim=8, attention_heads=2)
    ),
}


def description_trains(name):
    return DESCRIPTIONS[name].trained is not None


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    backbone = BackboneConfig(source="random", width=16, depth=1, heads=2, image_size=32)
    return load_classifier(ModelConfig(backbone=backbone)).eval()


def fused(classifier, name, **options):
    model = FusedClassifier(classifier, DESCRIPTIONS[name], **options).eval()
    if description_trains(name):
        torch.nn.init.normal_(model.fusion.correction.weight)
    return model


def views_of(model):
    """Three images: an ordinary one, one of a pixel, whose tiles are all the same, and one that is very wide."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in SIZES]
    return Views(*map(torch.stack, zip(*map(model.prepare, images), strict=True)))


SIZES = ((60, 90), (1, 1), (9, 200))


@pytest.mark.parametrize("name", DESCRIPTIONS)
class TestEveryMode:
    @torch.no_grad()
    def test_it_fuses_what_the_classifier_says_of_each_view(self, classifier, name):
        model = fused(classifier, name)
        views = views_of(model)
        by_hand = torch.stack([classifier(pixels) for pixels in views.pixels])  # masked views too, which must not count
        content = content_share(views.content, 32)
        expected = model.fusion(by_hand, views.mask, content) if not description_trains(name) else None
        if expected is None:
            features = torch.stack([classifier.embed(pixels) for pixels in views.pixels])
            expected = model.fusion(features, by_hand, views.mask, content).logits
        torch.testing.assert_close(model(views), expected, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_the_memory_budget_changes_nothing(self, classifier, name):
        model = fused(classifier, name)
        views = views_of(model)
        for at_once in (1, 5):
            torch.testing.assert_close(fused(classifier, name, at_once=at_once).embed(views), model.embed(views))

    def test_a_look_tells_the_same_and_what_each_view_counted(self, classifier, name):
        model = fused(classifier, name)
        views = views_of(model)
        with torch.inference_mode():
            look = model.look(views)
            torch.testing.assert_close(look.logits, model(views))
        assert (look.weights[~views.mask] == 0).all()
        assert look.view_logits.shape == (3, CUT.count, 2)
        if name not in ("noisy_or", "weighted_uncertainty"):  # these move more or less than their views do together
            torch.testing.assert_close(look.weights.sum(1), torch.ones(3), atol=1e-5, rtol=0)


def test_influence_is_the_weight_where_the_mode_is_a_mean():
    logits = torch.tensor([[[0.0, 1.0], [0.0, 3.0], [0.0, -1.0], [0.0, 9.0]]])
    mask, content = torch.tensor([[True, True, True, False]]), torch.tensor([[1.0, 0.5, 0.5, 1.0]])
    expected = {
        "simple_mean": [1 / 3] * 3,
        "content_aware": [0.5, 0.25, 0.25],
        "top_k": [0.5, 0.5, 0],
        "max": [0, 1, 0],
    }
    for mode, weights in expected.items():
        found = influence(logits, mask, content, FusionConfig(mode=mode, k=2))
        torch.testing.assert_close(found, torch.tensor([[*weights, 0.0]]))


def test_influence_follows_a_small_step():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 2, generator=generator, dtype=torch.float64)
    mask, content, step = torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 4), 1e-6
    config = FusionConfig(mode="noisy_or")
    moved = logits.clone()
    moved[:, 2, 0] -= step / 2
    moved[:, 2, 1] += step / 2
    before, after = ((f := FUSIONS["noisy_or"](x, mask, content, config))[:, 1] - f[:, 0] for x in (logits, moved))
    torch.testing.assert_close(
        influence(logits, mask, content, config)[:, 2], (after - before) / step, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "cvfm_inference"},
        {"mode": "cvfm_trained", "inference": FusionConfig()},
        {"mode": "multiview_mean", "trained": TRAINED},
    ],
)
def test_a_description_that_is_not_whole_is_refused(change):
    with pytest.raises(ValidationError, match="does not go with"):
        FusionDescription(views=CUT, **change)


def test_weights_come_back_and_only_where_they_belong(classifier, tmp_path):
    model, path = fused(classifier, "cvfm_trained"), tmp_path / "w.pth"
    save_tensors(path, model.fusion.state_dict())
    again = load_fused(classifier, model.description, path)
    with torch.no_grad():
        assert torch.equal(again(views_of(model)), model(views_of(model)))
    for name, weights in (("cvfm_trained", None), ("max", path)):
        with pytest.raises(ArtifactError, match="weights"):
            load_fused(classifier, DESCRIPTIONS[name], weights)
    wider = model.description.model_copy(update={"trained": TrainedFusionConfig(latent_dim=9)})
    with pytest.raises(ArtifactError, match="does not fit"):
        load_fused(classifier, wider, path)
