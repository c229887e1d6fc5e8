import io

import imagehash
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from streetvision.data.decode import decode_image, read_image
from streetvision.data.grouping.near_duplicates import find_near_duplicates
from streetvision.data.grouping.perceptual_hash import compute_hash, perceptual_hash, stack_hashes
from streetvision.synthetic.scenes import SceneConfig, draw_scene

N = 40


def jpeg(image, quality=90):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return decode_image(buffer.getvalue())


def cropped(image, share):
    width, height = image.size
    x, y = round(width * share), round(height * share)
    return image.crop((x, y, width - x, height - y))


def captioned(image):
    image = image.copy()
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, image.height * 11 // 12, image.width, image.height), fill="black")
    draw.text((2, image.height * 11 // 12 - 1), "2026-05-01 12:03:11 km 12.3", fill="white")
    return image


def with_barrier(image):
    """The image with a striped barrier in the lower middle, 16 by 14 % of its sides."""
    image = image.copy()
    width, height = image.size
    barrier = np.where(
        np.indices((height // 7, width // 6)).sum(axis=0)[..., None] // 5 % 2, (235, 235, 235), (200, 60, 20)
    )
    image.paste(Image.fromarray(barrier.astype(np.uint8)), (width * 3 // 7, height * 4 // 7))
    return image


ALTERED = {
    "scaled down": lambda image: jpeg(image.resize((image.width // 2, image.height // 2))),
    "scaled up": lambda image: jpeg(image.resize((image.width * 2, image.height * 3))),
    "encoded again": lambda image: jpeg(image, quality=40),
    "brighter": lambda image: jpeg(ImageEnhance.Brightness(image).enhance(1.25)),
    "darker": lambda image: jpeg(ImageEnhance.Brightness(image).enhance(0.7)),
    "5 % off two edges": lambda image: jpeg(image.crop((0, 0, image.width * 19 // 20, image.height * 19 // 20))),
    "rotated by 2 degrees": lambda image: jpeg(image.rotate(2, Image.Resampling.BICUBIC)),
    "caption over the lower edge": lambda image: jpeg(captioned(image)),
    "2.5 % off each edge": lambda image: jpeg(cropped(image, 0.025)),
    "5 % off each edge": lambda image: jpeg(cropped(image, 0.05)),
}


LEAST_FOUND = {"caption over the lower edge": 0.9, "5 % off two edges": 0.9}
"""Their hashes may be too different."""


@pytest.fixture(scope="module")
def pictures():
    config = SceneConfig(width=160, height=120)
    return [Image.fromarray(draw_scene(seed, config).image) for seed in range(N)]


@pytest.fixture(scope="module")
def originals(pictures):
    return [compute_hash(jpeg(picture)) for picture in pictures]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_the_hash_equals_that_of_imagehash(seed):
    gray = np.random.default_rng(seed).integers(0, 256, (32, 32), dtype=np.uint8)
    assert f"{perceptual_hash(gray):016x}" == str(imagehash.phash(Image.fromarray(gray)))


@pytest.mark.parametrize("alteration", ALTERED)
def test_altered_copies_are_found_and_nothing_else(pictures, originals, alteration):
    copies = [compute_hash(ALTERED[alteration](picture)) for picture in pictures]
    found = find_near_duplicates(stack_hashes([*originals, *copies]))
    pairs = set(map(tuple, found.pairs.tolist()))
    expected = {(number, number + N) for number in range(N)}
    assert len(pairs & expected) >= LEAST_FOUND.get(alteration, 0.98) * N
    assert pairs <= expected
    assert found.copies.mean() >= 0.95
    for first, second in pairs:
        assert found.clusters[first] == found.clusters[second]


def test_different_pictures_with_the_same_layout_are_similar_views_at_most(pictures):
    """A camera fixed in a car: a common layout, here the blurred mean of some pictures, and details of each picture."""
    layout = np.mean([np.asarray(picture.filter(ImageFilter.GaussianBlur(6))) for picture in pictures[:4]], axis=0)
    frames = [0.8 * layout + 0.35 * (np.asarray(picture) - np.asarray(picture).mean()) for picture in pictures[4:]]
    hashes = [compute_hash(jpeg(Image.fromarray(frame.clip(0, 255).astype(np.uint8)))) for frame in frames]
    found = find_near_duplicates(stack_hashes(hashes))
    assert len(found.pairs) > 0
    assert not found.copies.any()
    assert len(set(found.copy_clusters.tolist())) == len(frames)


def test_an_object_that_appears_before_a_fixed_camera_makes_another_picture(pictures, originals):
    later = [compute_hash(jpeg(with_barrier(picture))) for picture in pictures]
    found = find_near_duplicates(stack_hashes([*originals, *later]))
    assert len(found.pairs) >= 0.5 * N
    assert not found.copies.any()


def test_the_same_road_camera_on_other_stretches_gives_no_copy(real_data):
    folder = real_data / "pothole_br_df" / "images"
    hashes = stack_hashes(compute_hash(read_image(path)) for path in sorted(folder.iterdir()))
    found = find_near_duplicates(hashes)
    assert len(hashes.tiny) == 324
    assert not found.copies.any()


def test_tiny_images_are_compared_by_correlation_only(pictures):
    small = [
        compute_hash(torch.from_numpy(np.array(picture.resize((40, 30)))).permute(2, 0, 1)) for picture in pictures
    ]
    assert all(image.tiny for image in small)
    again = [compute_hash(jpeg(picture.resize((40, 30)))) for picture in pictures]
    pairs = set(map(tuple, find_near_duplicates(stack_hashes([*small, *again])).pairs.tolist()))
    assert len(pairs & {(number, number + N) for number in range(N)}) >= 0.98 * N


def test_a_chain_of_pairs_is_one_cluster_and_the_order_does_not_matter(originals):
    hashes = [*originals[:4], originals[1], originals[1]]
    found = find_near_duplicates(stack_hashes(hashes))
    assert found.pairs.tolist() == [[1, 4], [1, 5], [4, 5]]
    assert found.correlations.tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert len(set(found.clusters.tolist())) == 4
    assert len(find_near_duplicates(stack_hashes(hashes[::-1])).pairs) == 3


def test_blank_images_have_no_near_duplicates():
    blank = compute_hash(torch.full((3, 80, 80), 17, dtype=torch.uint8))
    tiny = compute_hash(torch.full((3, 20, 20), 17, dtype=torch.uint8))
    assert len(find_near_duplicates(stack_hashes([blank, blank, tiny, tiny])).pairs) == 0


def test_no_images():
    found = find_near_duplicates(stack_hashes([]))
    assert (len(found.pairs), len(found.clusters)) == (0, 0)


def test_stricter_limits_give_fewer_pairs(originals):
    hashes = stack_hashes(originals)
    loose = find_near_duplicates(hashes, radius=15, correlation=0.1)
    strict = find_near_duplicates(hashes, radius=15, correlation=0.6)
    assert len(strict.pairs) < len(loose.pairs) <= loose.candidates
    assert strict.correlations.min(initial=1) >= 0.6


@pytest.fixture(scope="module")
def camera_frames(pictures):
    """Frames of one fixed camera with noise and a small moving object: every pair has similar hashes."""
    rng = np.random.default_rng(0)
    scene = np.asarray(pictures[3], dtype=np.float32)
    frames = []
    for _ in range(40):
        frame = scene + rng.normal(0, 4, scene.shape)
        x, y = rng.integers(0, 140), rng.integers(40, 100)
        frame[y : y + 12, x : x + 16] = rng.integers(0, 256, 3)
        frames.append(Image.fromarray(frame.clip(0, 255).astype(np.uint8)))
    return frames


def test_of_a_fixed_camera_the_closest_frames_are_compared_and_copies_are_found(monkeypatch, camera_frames):
    monkeypatch.setattr("streetvision.data.grouping.near_duplicates.CLOSEST", 3)
    copies = [jpeg(frame.resize((200, 150)), quality=70) for frame in camera_frames[:5]]
    hashes = stack_hashes(map(compute_hash, [*map(jpeg, camera_frames), *copies]))
    found = find_near_duplicates(hashes)
    n = len(hashes.tiny)
    assert len(found.pairs) <= found.candidates <= 2 * 3 * n < n * (n - 1) / 4
    assert len(set(found.clusters.tolist())) == 1
    assert all(found.copy_clusters[i] == found.copy_clusters[len(camera_frames) + i] for i in range(5))
