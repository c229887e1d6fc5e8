"""Two views: of one image, or of two images of a group."""

import pytest
import torch
from PIL import Image

from streetvision.contracts.split_contracts import Row
from streetvision.data.config import DecodeLimits, PairConfig
from streetvision.data.two_views import GroupPairDataset, TwoViews
from streetvision.io.atomic import sha256_file

GRAYS = [0, 40, 80, 120, 160, 200]
GROUPS = [0, 1, 0, 1, 0, 2]
PLAIN = PairConfig(positives="same_group", color_jitter=0, grayscale_p=0, blur=False)


@pytest.fixture
def pairs(tmp_path):
    """Gray squares, each with its own shade."""
    rows = []
    for number, (gray, group) in enumerate(zip(GRAYS, GROUPS, strict=True)):
        Image.new("L", (24, 20 + number), gray).convert("RGB").save(tmp_path / f"{number}.png")
        rows.append(Row(f"{number}.png", group, sha256_file(tmp_path / f"{number}.png"), 24, 20 + number, 0.5))
    return GroupPairDataset(
        rows, root=tmp_path, transform=TwoViews(PLAIN, image_size=16), limits=DecodeLimits(), seed=3
    )


def shades(pairs, epoch, position):
    views, group, _ = pairs[epoch, position]
    assert views.shape == (2, 3, 16, 16)
    assert group == GROUPS[position]
    assert all(view.min() == view.max() for view in views)
    return [int(view[0, 0, 0]) for view in views]


def test_the_second_view_shows_any_image_of_the_group(pairs):
    for position, group in enumerate(GROUPS):
        drawn = [shades(pairs, epoch, position) for epoch in range(40)]
        assert {first for first, _ in drawn} == {GRAYS[position]}
        assert {second for _, second in drawn} == {GRAYS[p] for p, own in enumerate(GROUPS) if own == group}


def test_a_pair_depends_on_epoch_and_position_only(pairs):
    first = [shades(pairs, epoch, 0) for epoch in range(8)]
    shades(pairs, 3, 4)
    assert [shades(pairs, epoch, 0) for epoch in range(8)] == first
    assert len({second for _, second in first}) > 1


def test_one_image_gives_two_different_views():
    image = torch.randint(0, 255, (3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    views = TwoViews(PairConfig(), image_size=16)(image)
    assert views.shape == (2, 3, 16, 16)
    assert not torch.equal(views[0], views[1])
