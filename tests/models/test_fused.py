import pytest
import torch
from pydantic import ValidationError

from streetvision.contracts.errors import ArtifactError, ConfigError, StreetVisionError
from streetvision.io.tensors import save_tensors
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import (
    FusionConfig,
    FusionDescription,
    GatedAttentionConfig,
    LseConfig,
    ModelConfig,
    TopKConfig,
    TrainedFusionConfig,
    ViewsConfig,
)
from streetvision.models.fused import FusedClassifier, load_fused
from streetvision.models.fusion import FUSIONS, influence, single_view
from streetvision.models.module import load_classifier
from streetvision.models.multi_view import Views, content_fraction

VIEWS = ViewsConfig(rows=1, columns=3)
TRAINED = TrainedFusionConfig(latent_dim=8)
POOLINGS = {"lse": LseConfig(), "top_k": TopKConfig(k=2), "gated_attention": GatedAttentionConfig(hidden=4)}
DESCRIPTIONS = {
    "multiview_mean": FusionDescription(mode="multiview_mean", views=VIEWS),
    **{
        name: FusionDescription(mode="cvfm_inference", views=VIEWS, inference=FusionConfig(mode=name))
        for name in FUSIONS
    },
    **{
        f"mil, {name}": FusionDescription(mode="mil", views=VIEWS, pooling=pooling)
        for name, pooling in POOLINGS.items()
    },
    "dense": FusionDescription(mode="dense", dense_size=(128, 192), pooling=LseConfig()),
    "cvfm_trained": FusionDescription(mode="cvfm_trained", views=VIEWS, trained=TRAINED),
    "cvfm_trained, attending": FusionDescription(
        mode="cvfm_trained", views=VIEWS, trained=TrainedFusionConfig(latent_dim=8, attention_heads=2)
    ),
}


def is_fitted(name):
    return DESCRIPTIONS[name].has_weights


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    backbone = BackboneConfig(source="random", width=16, depth=1, heads=2)
    return load_classifier(ModelConfig(backbone=backbone, image_size=32)).eval()


def fused(classifier, name, **options):
    model = FusedClassifier(classifier, DESCRIPTIONS[name], **options).eval()
    if is_fitted(name):
        torch.nn.init.normal_(model.fusion.weight if model.description.pooling else model.fusion.correction.weight)
    return model


def views_of(model):
    """Views of three images: an ordinary one, one of a single pixel, whose tiles are identical, and a very wide one."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in SIZES]
    return Views(*map(torch.stack, zip(*map(model.prepare, images), strict=True)))


SIZES = ((60, 90), (1, 1), (9, 200))


@pytest.mark.parametrize("name", DESCRIPTIONS)
class TestEveryMode:
    @torch.no_grad()
    def test_it_fuses_the_logits_and_features_of_each_view(self, classifier, name):
        model = fused(classifier, name)
        views = views_of(model)
        view_logits = torch.stack(
            [classifier(pixels) for pixels in views.pixels]
        )  # includes masked views, which must not count
        content = content_fraction(views.content, (32, 32))
        features = torch.stack([classifier.embed(pixels) for pixels in views.pixels])
        if not is_fitted(name):
            expected = model.fusion(view_logits, views.mask, content)
        elif name.startswith("cvfm"):
            expected = model.fusion(features, view_logits, views.mask, content).logits
        else:
            if name == "dense":
                evidence = model.fusion(model.dense(views.dense[:, 0]), model.embed(views).patch_mask)
            else:
                evidence = model.fusion(features[:, 1:], views.mask[:, 1:])
            half = evidence.margin[:, None] / 2
            expected = single_view(view_logits, views.mask) + torch.cat([-half, half], dim=1)
        torch.testing.assert_close(model(views), expected, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_the_chunk_size_does_not_change_the_features(self, classifier, name):
        model = fused(classifier, name)
        views = views_of(model)
        for chunk_size in (1, 5):
            chunked = fused(classifier, name, chunk_size=chunk_size).embed(views)
            for actual, expected in zip(chunked, model.embed(views), strict=True):
                torch.testing.assert_close(actual, expected)

    @torch.no_grad()
    def test_an_untrained_fusion_is_the_single_view(self, classifier, name):
        if not is_fitted(name):
            pytest.skip("nothing is fitted")
        model = FusedClassifier(classifier, DESCRIPTIONS[name]).eval()
        views = views_of(model)
        torch.testing.assert_close(model(views), classifier(views.pixels[:, 0]), atol=1e-6, rtol=0)

    def test_details_have_the_same_logits_and_the_influence_of_each_view(self, classifier, name):
        model = fused(classifier, name)
        views = views_of(model)
        with torch.inference_mode():
            output = model.forward_details(views)
            torch.testing.assert_close(output.logits, model(views))
        count = 1 + 4 * 6 if name == "dense" else VIEWS.count
        assert output.view_logits.shape == (3, count, 2)
        assert len(model.boxes(60, 90)) == count
        assert (output.weights[~output.mask] == 0).all()
        if model.description.pooling is not None:
            assert torch.equal(output.weights[:, 0], torch.ones(3))
            torch.testing.assert_close(output.weights[:, 1:].sum(1), output.mask[:, 1:].any(dim=1).float())
        elif name not in ("noisy_or", "weighted_uncertainty"):  # their influences do not add up to 1
            torch.testing.assert_close(output.weights.sum(1), torch.ones(3), atol=1e-5, rtol=0)


def test_influence_is_the_weight_where_the_mode_is_a_mean():
    logits = torch.tensor([[[0.0, 1.0], [0.0, 3.0], [0.0, -1.0], [0.0, 9.0]]])
    mask, content = torch.tensor([[True, True, True, False]]), torch.tensor([[1.0, 0.5, 0.5, 1.0]])
    expected = {
        "simple_mean": [1 / 3] * 3,
        "content_aware": [0.5, 0.25, 0.25],
        "top_k": [0.5, 0.5, 0],
        "max": [0, 1, 0],
    }
    for mode, expected_weights in expected.items():
        weights = influence(logits, mask, content, FusionConfig(mode=mode, **({"k": 2} if mode == "top_k" else {})))
        torch.testing.assert_close(weights, torch.tensor([[*expected_weights, 0.0]]))


def test_influence_is_the_derivative():
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
        {"mode": "mil"},
        {"mode": "dense", "pooling": LseConfig(), "dense_size": (64, 64)},  # it has no tiles
    ],
)
def test_an_inconsistent_description_is_rejected(change):
    with pytest.raises(ValidationError, match="does not match"):
        FusionDescription(views=VIEWS, **change)


def test_weights_are_loaded_only_if_they_fit_the_description(classifier, tmp_path):
    model, path = fused(classifier, "cvfm_trained"), tmp_path / "w.pth"
    save_tensors(path, model.fusion.state_dict())
    loaded = load_fused(classifier, model.description, path)
    with torch.no_grad():
        assert torch.equal(loaded(views_of(model)), model(views_of(model)))
    for name, weights in (("cvfm_trained", None), ("max", path)):
        with pytest.raises(ArtifactError, match="weights"):
            load_fused(classifier, DESCRIPTIONS[name], weights)
    wider = model.description.model_copy(update={"trained": TrainedFusionConfig(latent_dim=9)})
    with pytest.raises(ArtifactError, match="does not fit"):
        load_fused(classifier, wider, path)


@pytest.mark.parametrize(
    ("description", "weight"),
    [
        ({"mode": "dense", "dense_size": (4096, 4096), "pooling": {"name": "lse"}}, (1, 16)),  # too large
        ({"mode": "dense", "dense_size": (64, 80), "pooling": {"name": "lse"}}, (1, 16)),  # no multiple of a patch
        ({"mode": "dense", "dense_size": (64, 64), "pooling": {"name": "lse"}}, (1, 17)),
        ({"mode": "mil", "views": {}, "pooling": {"name": "gated_attention", "hidden": 1024}}, (1, 16)),
    ],
)
def test_a_description_from_elsewhere_that_does_not_fit_is_one_error(classifier, tmp_path, description, weight):
    save_tensors(tmp_path / "w.pth", {"weight": torch.zeros(weight), "bias": torch.zeros(weight[0])})
    with pytest.raises(StreetVisionError) as error:
        load_fused(classifier, FusionDescription.model_validate(description), tmp_path / "w.pth")
    assert error.value.hint


@pytest.mark.parametrize(
    "description",
    [
        {"mode": "dense", "dense_size": (10**9, 64), "pooling": {"name": "lse"}},
        {"mode": "mil", "views": {}, "pooling": {"name": "top_k", "k": 10**12}},
        {"mode": "mil", "views": {"rows": 10**6}, "pooling": {"name": "lse"}},
    ],
)
def test_a_description_with_huge_numbers_is_rejected(description):
    with pytest.raises(ValidationError):
        FusionDescription.model_validate(description)


def test_patches_of_padding_do_not_count(classifier):
    model = fused(classifier, "dense")
    square, wide = (model.prepare(torch.full((3, *size), 200, dtype=torch.uint8)) for size in ((60, 90), (9, 200)))
    views = Views(*map(torch.stack, zip(square, wide, strict=True)))
    counted = model.embed(views).patch_mask.reshape(2, 4, 6)
    assert counted[0].all()
    assert counted[1].any(dim=1).tolist() == [False, True, True, False]
    boxes = [box for box, used in zip(model.boxes(9, 200)[1:], counted[1].flatten(), strict=True) if used]
    assert (boxes[0][:2], boxes[-1][2:]) == ((0, 0), (200, 9))


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [((40, 200), [True] * 4, [True] * 6), ((200, 100), [True] * 4, [False, *[True] * 4, False])],
)
def test_the_padding_of_a_dense_pass_is_its_own(classifier, size, rows, columns):
    model = fused(classifier, "dense")  # its aspect ratio is not that of the single view
    views = model.prepare(torch.full((3, *size), 200, dtype=torch.uint8))
    counted = model.embed(Views(*(part[None] for part in views))).patch_mask.reshape(4, 6)
    assert counted.any(dim=1).tolist() == rows
    assert counted.any(dim=0).tolist() == columns
    left, top, right, bottom = views.dense_content[0].tolist()
    outside = views.dense[0].clone()
    outside[:, top:bottom, left:right] = 0
    assert not outside.any()
    shown = [box.left < box.right and box.top < box.bottom for box in model.boxes(*size)[1:]]
    assert counted.flatten().tolist() == shown


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_backbones_that_take_another_size_share_their_weights(name):
    model = load_classifier(
        ModelConfig(backbone=BackboneConfig(source="timm", name=name), image_size=64, pooling="mean")
    )
    patches = model.eval().patches_at((128, 192))
    images = torch.randint(0, 256, (1, 3, 128, 192), dtype=torch.uint8)
    with torch.no_grad():
        before = patches(images)
        next(p for n, p in model.backbone.named_parameters() if n.endswith("weight")).mul_(2)
        assert before.shape == (1, patches.count, patches.width)
        assert not torch.allclose(patches(images), before)


def test_a_backbone_of_one_size_is_refused_by_name():
    model = load_classifier(ModelConfig(backbone=BackboneConfig(source="timm", name="mixer_s32_224"), pooling="mean"))
    with pytest.raises(ConfigError, match="mixer_s32_224"):
        model.patches_at((448, 448))
