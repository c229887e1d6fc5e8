import torch

from benchmarks.net2net_vit import WIDTH, net2net_vit_s
from streetvision.models.backbone import BackboneConfig, load_backbone


def test_it_computes_what_the_packaged_backbone_computes():
    small, large = load_backbone(BackboneConfig(source="embedded", name="dinov3_scenes")), net2net_vit_s()
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (expected,), (found,) = small(pixels), large(pixels)
    copies = WIDTH // small.spec.embed_dim
    torch.testing.assert_close(found, expected.repeat(1, 1, copies), rtol=1e-4, atol=1e-4)


def test_it_has_the_size_of_a_vit_s():
    large = net2net_vit_s()
    assert (large.spec.embed_dim, large.spec.patch_size, large.spec.image_size) == (384, 16, (224, 224))
    assert 21e6 < sum(parameter.numel() for parameter in large.parameters()) < 22e6
