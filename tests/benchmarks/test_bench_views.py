import pytest
import torch

from benchmarks import bench_views
from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.progress import Silent


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench_views, "IMAGES", 2)
    monkeypatch.setattr(bench_views, "VIEWS", 3)
    monkeypatch.setattr(bench_views, "interleaved_median", lambda ours, theirs, repeats: (2.0 * bool(len(ours())), 1.0))


def test_both_ways_see_the_same_and_a_view_is_counted_among_its_kin(small):
    beside_batches, beside_images, by_count = bench_views.bench_views(Silent())
    assert beside_batches.ratio == beside_images.ratio == 2.0
    assert by_count.ratio == 1.0
    two = torch.randint(0, 256, (2, 3, 3, 160, 160), dtype=torch.uint8)
    embed = type("Tiny", (), {"embed": staticmethod(lambda images: images.float().mean(dim=(2, 3)))})
    torch.testing.assert_close(bench_views.one_image_at_a_time(embed, two), bench_views.one_view_at_a_time(embed, two))


def test_ways_that_differ_are_not_timed(small, monkeypatch):
    monkeypatch.setattr(bench_views, "one_view_at_a_time", lambda *_: torch.zeros(2, 3, 256))
    with pytest.raises(StreetVisionError, match="differ by"):
        bench_views.bench_views(Silent())
