"""The fusion of views in NumPy gives the results of the one in PyTorch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from streetvision.bundle.view_fusion import FUSIONS, ViewFusion, inference_keys
from streetvision.contracts.errors import ArtifactError
from streetvision.models import fusion as torch_fusion
from streetvision.models.config import FusionConfig, FusionDescription, TrainedFusionConfig, ViewsConfig
from streetvision.models.network import seeded
from streetvision.models.views import ViewArrays

WIDTH, SIDE = 12, 32
VIEWS = ViewsConfig(rows=2, columns=2)


def random_views(seed):
    """Features, logits and views of one image; some views are masked, each has other padding."""
    random = np.random.default_rng(seed)
    mask = random.random(VIEWS.count) < 0.7
    mask[0] = True
    content = np.tile([0, 0, SIDE, SIDE], (VIEWS.count, 1))
    content[:, 3] -= random.integers(0, SIDE // 2, VIEWS.count)
    views = ViewArrays(np.zeros((VIEWS.count, 3, SIDE, SIDE), np.uint8), content, mask)
    features = random.normal(size=(VIEWS.count, WIDTH)).astype(np.float32)
    return features, random.normal(scale=3, size=(VIEWS.count, 2)).astype(np.float32), views


def content_of(views):
    return torch.from_numpy((views.content[:, 2] * views.content[:, 3] / SIDE**2).astype(np.float32))[None]


def test_the_modes_are_those_of_pytorch():
    assert list(FUSIONS) == list(torch_fusion.FUSIONS)


@pytest.mark.parametrize("mode", FUSIONS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 6))
def test_fused_logits_and_influence_are_those_of_pytorch(mode, seed, k):
    features, logits, views = random_views(seed)
    config = FusionConfig(mode=mode, k=k if mode == "top_k" else FusionConfig().k)
    description = FusionDescription(mode="cvfm_inference", views=VIEWS, inference=config)
    fused = ViewFusion(description, WIDTH, None)(features[views.mask], logits[views.mask], views)
    arguments = (torch.from_numpy(logits)[None], torch.from_numpy(views.mask)[None], content_of(views))
    expected = torch_fusion.InferenceCVFM(config)(*arguments)[0].numpy()
    np.testing.assert_allclose(fused.logits, expected, atol=1e-4)
    influence = torch_fusion.influence(*arguments, config)[0].numpy()[views.mask]
    np.testing.assert_allclose(fused.weights, influence, atol=1e-3)


def trained_fusion(attention_heads, tmp_path):
    config = TrainedFusionConfig(latent_dim=8, attention_heads=attention_heads)
    with seeded(0):
        module = torch_fusion.TrainableCVFM(VIEWS, WIDTH, 2, config).eval()
        for parameter in module.parameters():  # as after training; initial corrections and scores are 0
            torch.nn.init.normal_(parameter, std=0.5)
    state = module.state_dict()
    save_file({key: state[key].numpy() for key in inference_keys(state)}, tmp_path / "weights.safetensors")
    return module, FusionDescription(mode="cvfm_trained", views=VIEWS, trained=config)


@pytest.mark.parametrize("attention_heads", [0, 2])
def test_a_trained_fusion_gives_the_results_of_pytorch(attention_heads, tmp_path):
    module, description = trained_fusion(attention_heads, tmp_path)
    fusion = ViewFusion(description, WIDTH, tmp_path / "weights.safetensors")
    for seed in range(20):
        features, logits, views = random_views(seed)
        fused = fusion(features[views.mask], logits[views.mask], views)
        with torch.inference_mode():
            arguments = (torch.from_numpy(array)[None] for array in (features, logits, views.mask))
            expected = module(*arguments, content_of(views))
        np.testing.assert_allclose(fused.logits, expected.logits[0], atol=1e-4)
        np.testing.assert_allclose(fused.weights, expected.weights[0].numpy()[views.mask], atol=1e-5)


def test_evidence_of_tiles_gives_the_results_of_pytorch(tmp_path):
    module = torch_fusion.EvidenceFusion(VIEWS, WIDTH).eval()
    torch.nn.init.normal_(module.weight)
    torch.nn.init.constant_(module.bias, -0.3)
    save_file({key: value.numpy() for key, value in module.state_dict().items()}, tmp_path / "weights.safetensors")
    description = FusionDescription(mode="mil", views=VIEWS)
    fusion = ViewFusion(description, WIDTH, tmp_path / "weights.safetensors")
    for seed in range(20):
        features, logits, views = random_views(seed)
        if seed == 0:
            views = views._replace(mask=np.arange(VIEWS.count) == 0)
        fused = fusion(features[views.mask], logits[views.mask], views)
        with torch.inference_mode():
            arguments = (torch.from_numpy(array)[None] for array in (features, logits, views.mask))
            expected = module(*arguments, content_of(views))
        np.testing.assert_allclose(fused.logits, expected.logits[0], atol=1e-5)
        np.testing.assert_allclose(fused.weights, expected.weights[0].numpy()[views.mask], atol=1e-5)
        assert np.array_equal(fused.logits, logits[0]) == (seed == 0)
    with pytest.raises(ArtifactError, match="weight is"):
        ViewFusion(description, WIDTH + 1, tmp_path / "weights.safetensors")
    with pytest.raises(ArtifactError, match="needs weights"):
        ViewFusion(description, WIDTH, None)


def test_weights_of_another_fusion_are_rejected(tmp_path):
    _, description = trained_fusion(2, tmp_path)
    path = tmp_path / "weights.safetensors"
    with pytest.raises(ArtifactError, match=r"encoder\.0"):
        ViewFusion(description, WIDTH + 1, path)
    without_attention = description.model_copy(update={"trained": TrainedFusionConfig(latent_dim=8)})
    with pytest.raises(ArtifactError, match=r"attention\."):
        ViewFusion(without_attention, WIDTH, path)
    with pytest.raises(ArtifactError, match="needs weights"):
        ViewFusion(description, WIDTH, None)
    path.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="cannot read"):
        ViewFusion(description, WIDTH, path)
