import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streetvision.contracts.errors import ConfigError, DataError
from streetvision.models.config import FusionConfig, TrainedFusionConfig, ViewsConfig
from streetvision.models.fusion import FUSIONS, InferenceCVFM, TrainableCVFM


def random_views(batch=5, views=4, classes=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, views, classes, generator=generator) * 4
    mask = torch.rand(batch, views, generator=generator) < 0.7
    mask[:, 0] = True
    return logits, mask, torch.rand(batch, views, generator=generator) * 0.8 + 0.2


def fuse(mode, *inputs, **options):
    return InferenceCVFM(FusionConfig(mode=mode, **options))(*inputs)


@pytest.mark.parametrize("mode", FUSIONS)
class TestEveryMode:
    def test_masked_views_have_no_influence_even_if_not_finite(self, mode):
        logits, mask, content = random_views()
        expected = fuse(mode, logits, mask, content)
        for value in (math.nan, math.inf, -1e30):
            changed = torch.where(mask[..., None], logits, value)
            torch.testing.assert_close(fuse(mode, changed, mask, torch.where(mask, content, value)), expected)
        for row in range(len(mask)):
            valid = mask[row]
            alone = fuse(mode, logits[row : row + 1, valid], valid[None, valid], content[row : row + 1, valid])
            torch.testing.assert_close(alone[0], expected[row])

    def test_one_view_is_the_identity(self, mode):
        logits, mask, content = random_views(views=1)
        logits[0, 0] = torch.tensor([150.0, -150.0])
        torch.testing.assert_close(fuse(mode, logits, mask, content), logits[:, 0])

    def test_equal_views_fuse_to_the_same_logits(self, mode):
        logits, _, content = random_views(views=1)
        many, mask = logits.expand(-1, 6, -1), torch.ones(5, 6, dtype=torch.bool)
        fused = fuse(mode, many, mask, content.expand(-1, 6))
        if mode != "noisy_or":
            torch.testing.assert_close(fused, logits[:, 0])
        assert (fused.argmax(1) >= logits[:, 0].argmax(1)).all()

    def test_the_order_of_views_does_not_matter(self, mode):
        logits, mask, content = random_views()
        order = torch.tensor([2, 0, 3, 1])
        torch.testing.assert_close(
            fuse(mode, logits[:, order], mask[:, order], content[:, order]), fuse(mode, logits, mask, content)
        )

    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-3, 1.0, 60.0]))
    def test_gradients_are_finite(self, mode, seed, scale):
        logits, mask, content = random_views(seed=seed)
        logits = (logits * scale).requires_grad_()
        fuse(mode, logits, mask, content).sum().backward()
        assert torch.isfinite(logits.grad).all()
        assert (logits.grad[~mask] == 0).all()

    def test_an_image_without_views_is_an_error(self, mode):
        logits, mask, content = random_views()
        mask[3] = False
        with pytest.raises(DataError, match="1 of 5 images have no view"):
            fuse(mode, logits, mask, content)


ALL = torch.ones(1, 3, dtype=torch.bool)


def test_modes_in_which_one_positive_tile_decides():
    """One positive view at 0.993 and nine negative ones at 0.9997: mean and certainty favor the negative class."""
    logits = torch.tensor([[[0.0, 5.0], *[[8.0, 0.0]] * 9]])
    mask, content = torch.ones(1, 10, dtype=torch.bool), torch.ones(1, 10)
    decisions = {
        mode: bool(fuse(mode, logits, mask, content, **({"k": 1} if mode == "top_k" else {}))[0].argmax())
        for mode in FUSIONS
    }
    assert decisions == {
        "simple_mean": False,
        "weighted_uncertainty": False,
        "content_aware": False,
        "top_k": True,
        "max": True,
        "noisy_or": True,
    }


def test_noisy_or_is_the_probability_that_any_view_is_positive():
    logits, mask, content = random_views(batch=50, views=6)
    p = logits.double().softmax(-1)[..., 1]
    expected = 1 - torch.where(mask, 1 - p, 1).prod(dim=1)
    probability = fuse("noisy_or", logits.double(), mask, content.double()).softmax(-1)[:, 1]
    torch.testing.assert_close(probability, expected)


def test_weights_follow_certainty_and_content():
    logits = torch.tensor([[[0.0, 0.1], [6.0, 0.0], [0.0, 0.0]]])
    certain = fuse("weighted_uncertainty", logits, ALL, torch.ones(1, 3), temperature=0.05)
    torch.testing.assert_close(certain, logits[:, 1], rtol=0, atol=1e-4)
    uniform = fuse("weighted_uncertainty", logits, ALL, torch.ones(1, 3), temperature=1e6)
    torch.testing.assert_close(uniform, logits.mean(1), rtol=1e-4, atol=1e-4)
    content = torch.tensor([[0.0, 1.0, 1.0]])
    torch.testing.assert_close(fuse("content_aware", logits, ALL, content), logits[:, 1:].mean(1))


def test_top_k_takes_the_views_with_the_most_evidence():
    logits = torch.tensor([[[0.0, 1.0], [0.0, 3.0], [9.0, 0.0]]])
    torch.testing.assert_close(fuse("top_k", logits, ALL, torch.ones(1, 3), k=2), logits[:, :2].mean(1))
    torch.testing.assert_close(fuse("top_k", logits, ALL, torch.ones(1, 3), k=9), logits.mean(1))


@pytest.mark.parametrize("heads", [0, 2])
class TestTrained:
    @pytest.fixture
    def module(self, heads):
        torch.manual_seed(0)
        views = ViewsConfig(rows=1, columns=3)
        return TrainableCVFM(views, 6, 2, TrainedFusionConfig(latent_dim=8, attention_heads=heads))

    def inputs(self):
        logits, mask, content = random_views()
        return torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(1)), logits, mask, content

    def test_the_untrained_module_is_exactly_the_single_view(self, module):
        features, logits, mask, content = self.inputs()
        mean = fuse("simple_mean", logits, mask, content)
        expected = torch.where(mask[:, :1], logits[:, 0], mean)
        assert torch.equal(module(features, logits, mask, content).logits, expected)

    def test_the_weights_depend_on_the_features(self, module):
        module.eval()
        features, logits, mask, content = self.inputs()
        before = module(features, logits, mask, content).weights
        torch.nn.init.ones_(module.feature_score)
        assert not torch.allclose(module(features, logits, mask, content).weights, before)
        assert not torch.allclose(module(features.flip(0), logits, mask, content).weights, before)

    def test_masked_views_have_no_influence_even_if_not_finite(self, module):
        module.eval()
        torch.nn.init.normal_(module.correction.weight)
        torch.nn.init.normal_(module.content_slope)
        torch.nn.init.normal_(module.feature_score)
        features, logits, mask, content = self.inputs()
        expected = module(features, logits, mask, content)
        loss = module.reconstruction_loss(expected.latent, features, mask)
        changed = [torch.where(mask[..., None], part, torch.nan) for part in (features, logits)]
        output = module(*changed, mask, torch.where(mask, content, torch.nan))
        for actual, reference in zip(output, expected, strict=True):
            torch.testing.assert_close(actual, reference)
        torch.testing.assert_close(module.reconstruction_loss(output.latent, changed[0], mask), loss)
        assert (output.weights[~mask] == 0).all()
        torch.testing.assert_close(output.weights.sum(1), torch.ones(5))

    def test_content_changes_the_weights(self, module):
        module.eval()
        features, logits, mask, content = self.inputs()
        uniform = module(features, logits, torch.ones_like(mask), content).weights
        torch.testing.assert_close(uniform, torch.full_like(uniform, 0.25))
        with torch.no_grad():
            module.content_slope.fill_(3.0)
        weights = module(features, logits, torch.ones_like(mask), content).weights
        assert (weights.argmax(1) == content.argmax(1)).all()

    def test_gradients_reach_every_parameter_and_are_finite(self, module):
        torch.nn.init.normal_(module.correction.weight)
        features, logits, mask, content = self.inputs()
        fused = module(features, logits, mask, content)
        (fused.logits.logsumexp(1).sum() + module.reconstruction_loss(fused.latent, features, mask)).backward()
        for name, parameter in module.named_parameters():
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0, name

    def test_it_learns_which_views_matter(self, module):
        """Only the features of the last view depend on the class; the logits are all 0."""
        torch.manual_seed(0)
        features, labels = torch.randn(256, 4, 6), torch.randint(0, 2, (256,))
        features[:, 3, 0] = 3.0 * labels - 1.5
        logits, mask, content = torch.zeros(256, 4, 2), torch.ones(256, 4, dtype=torch.bool), torch.ones(256, 4)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
        for _ in range(150):
            loss = torch.nn.functional.cross_entropy(module(features, logits, mask, content).logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        fused = module.eval()(features, logits, mask, content)
        assert (fused.logits.argmax(1) == labels).float().mean() > 0.95
        assert fused.weights[0].argmax() == 3

    def test_an_image_without_views_is_an_error(self, module):
        features, logits, mask, content = self.inputs()
        with pytest.raises(DataError, match="no view"):
            module(features, logits, torch.zeros_like(mask), content)


def test_heads_that_do_not_fit_are_an_error():
    with pytest.raises(ConfigError, match="latent_dim=5 is not a multiple of attention_heads=2"):
        TrainedFusionConfig(latent_dim=5, attention_heads=2)
