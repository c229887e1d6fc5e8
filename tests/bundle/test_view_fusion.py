"""The fusion of views in NumPy gives the results of the one in PyTorch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors

from streetvision.bundle.graph_model import make_view_arrays
from streetvision.bundle.view_fusion import EVIDENCE, FUSIONS, ViewFusion, inference_keys
from streetvision.contracts.errors import ArtifactError
from streetvision.models import evidence as torch_evidence
from streetvision.models import fusion as torch_fusion
from streetvision.models.config import (
    FusionConfig,
    FusionDescription,
    GatedAttentionConfig,
    LseConfig,
    TopKConfig,
    TrainedFusionConfig,
    ViewsConfig,
)
from streetvision.models.network import seeded
from streetvision.models.views import ViewArrays, plan_patches

WIDTH, SIDE = 12, 32
VIEWS = ViewsConfig(rows=2, columns=2)
POOLINGS = {"lse": LseConfig(), "top_k": TopKConfig(k=2), "gated_attention": GatedAttentionConfig(hidden=3)}


def random_views(seed):
    """Features, logits and views of one image; some views are masked, each has other padding."""
    random = np.random.default_rng(seed)
    mask = random.random(VIEWS.count) < 0.7
    mask[0] = True
    content = np.tile([0, 0, SIDE, SIDE], (VIEWS.count, 1))
    content[:, 3] -= random.integers(0, SIDE // 2, VIEWS.count)
    views = ViewArrays(
        np.zeros((VIEWS.count, 3, SIDE, SIDE), np.uint8), content, mask, np.zeros((0, 3, 0, 0), np.uint8), content[:0]
    )
    features = random.normal(size=(VIEWS.count, WIDTH)).astype(np.float32)
    return features, random.normal(scale=3, size=(VIEWS.count, 2)).astype(np.float32), views


def content_of(views):
    return torch.from_numpy((views.content[:, 2] * views.content[:, 3] / SIDE**2).astype(np.float32))[None]


def test_the_modes_are_those_of_pytorch():
    assert list(FUSIONS) == list(torch_fusion.FUSIONS)
    assert list(EVIDENCE) == list(torch_evidence.EVIDENCE)


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


def evidence_of(pooling, instances, folder):
    with seeded(0):
        module = torch_evidence.EVIDENCE[pooling.name](pooling, instances, WIDTH).eval()
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)
    path = folder / "weights.safetensors"
    save_file({key: value.numpy() for key, value in module.state_dict().items()}, path)
    return module, path


@pytest.mark.parametrize("name", EVIDENCE)
def test_evidence_of_tiles_gives_the_results_of_pytorch(name, tmp_path):
    module, path = evidence_of(POOLINGS[name], VIEWS.count - 1, tmp_path)
    description = FusionDescription(mode="mil", views=VIEWS, pooling=POOLINGS[name])
    fusion = ViewFusion(description, WIDTH, path)
    for seed in range(20):
        features, logits, views = random_views(seed)
        if seed == 0:
            views = views._replace(mask=np.arange(VIEWS.count) == 0)
        fused = fusion(features[views.mask], logits[views.mask], views)
        with torch.inference_mode():
            expected = module(torch.from_numpy(features[1:])[None], torch.from_numpy(views.mask[1:])[None])
        margin = np.diff(fused.logits - logits[0]).item()
        assert margin == pytest.approx(expected.margin.item(), abs=1e-5)
        np.testing.assert_allclose(fused.weights[1:], expected.weights[0].numpy()[views.mask[1:]], atol=1e-5)
        assert np.array_equal(fused.logits, logits[0]) == (seed == 0)
    with pytest.raises(ArtifactError, match="weight is"):
        ViewFusion(description, WIDTH + 1, path)
    with pytest.raises(ArtifactError, match="needs weights"):
        ViewFusion(description, WIDTH, None)


@pytest.mark.parametrize("size", [(40, 200), (200, 100), (100, 150)])
def test_patches_count_that_show_a_part_of_the_image(tmp_path, size):
    dense_size, patches = (128, 192), 4 * 6
    _, path = evidence_of(POOLINGS["lse"], patches, tmp_path)
    description = FusionDescription(mode="dense", dense_size=dense_size, pooling=POOLINGS["lse"])
    features, logits, _ = random_views(0)
    pixels = np.full((*size, 3), 200, np.uint8)
    views = make_view_arrays(pixels, None, image_size=(SIDE, SIDE), dense_size=dense_size)
    features_of_patches = np.random.default_rng(0).normal(size=(patches, WIDTH)).astype(np.float32)
    fused = ViewFusion(description, None, path)(features[:1], logits[:1], views, features_of_patches)
    boxes = plan_patches(*size, dense_size, patches)
    shown = [box.left < box.right and box.top < box.bottom for box in boxes]
    assert fused.mask.tolist() == [True, *shown]
    assert (fused.weights > 0).tolist() == [True, *shown]


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
    for dtype in (torch.bfloat16, torch.float64):
        save_tensors(
            {key: torch.from_numpy(value).to(dtype) for key, value in load_file(path).items()},
            other := tmp_path / "other",
        )
        with pytest.raises(ArtifactError):
            ViewFusion(description, WIDTH, other)
    path.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="cannot read"):
        ViewFusion(description, WIDTH, path)
