import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.split_contracts import Split
from streetvision.data.decode import decode_image
from streetvision.data.grouping.perceptual_hash import compute_hash, stack_hashes
from streetvision.data.grouping.seen_images import parse_seen_images, record_images
from streetvision.synthetic.scenes import SceneConfig, draw_scene

N = 40


def hash_jpeg(image, quality=90):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return compute_hash(decode_image(buffer.getvalue()))


def cropped(image, share):
    width, height = image.size
    x, y = round(width * share), round(height * share)
    return image.crop((x, y, width - x, height - y))


ALTERED = {
    "half the size": lambda image: hash_jpeg(image.resize((image.width // 2, image.height // 2))),
    "quality 40": lambda image: hash_jpeg(image, quality=40),
    "brighter": lambda image: hash_jpeg(ImageEnhance.Brightness(image).enhance(1.25)),
    "darker": lambda image: hash_jpeg(ImageEnhance.Brightness(image).enhance(0.7)),
    **{
        f"{100 * share:g} % off every edge": lambda image, share=share: hash_jpeg(cropped(image, share))
        for share in (0.025, 0.031, 0.0375, 0.044, 0.05)
    },
    "2.5 % off, half the size, quality 40": lambda image: hash_jpeg(
        cropped(image, 0.025).resize((image.width // 2, image.height // 2)), quality=40
    ),
}


@pytest.fixture(scope="module")
def pictures():
    config = SceneConfig(width=320, height=240)
    return [Image.fromarray(draw_scene(seed, config).image) for seed in range(N)]


@pytest.fixture(scope="module")
def record(pictures):
    """Even pictures, as they are in a file: TRAIN, and VAL_TEST from the middle on."""
    images = stack_hashes(map(hash_jpeg, pictures[::2]))
    roles = [Split.TRAIN] * (N // 4) + [Split.VAL_TEST] * (N // 4)
    return parse_seen_images(record_images(images, roles).to_bytes())


@pytest.mark.parametrize("alteration", ALTERED)
def test_altered_copies_are_found_with_their_split_and_other_pictures_are_not(pictures, record, alteration):
    found = record.find_copies(stack_hashes(map(ALTERED[alteration], pictures)))
    assert found == {i: Split.TRAIN if i < N // 2 else Split.VAL_TEST for i in range(0, N, 2)}


def test_the_whole_of_a_recorded_crop_is_found(pictures):
    crops = stack_hashes(hash_jpeg(cropped(picture, 0.05)) for picture in pictures)
    record = record_images(crops, [Split.TRAIN] * N)
    assert len(record.find_copies(stack_hashes(map(hash_jpeg, pictures)))) == N


def test_a_copy_of_images_of_several_splits_counts_as_used(pictures):
    images = stack_hashes([hash_jpeg(pictures[0])] * 2)
    record = record_images(images, [Split.VAL_TEST, Split.TRAIN])
    assert record.find_copies(images) == {0: Split.TRAIN, 1: Split.TRAIN}


def test_positions_are_those_of_all_images_if_some_are_blank_or_tiny(pictures, record):
    blank, tiny = Image.new("RGB", (80, 80)), pictures[0].resize((40, 30))
    images = stack_hashes(map(hash_jpeg, [blank, tiny, pictures[0]]))
    assert record.find_copies(images) == {2: Split.TRAIN}


def test_other_photographs_of_one_road_camera_are_no_copies(real_data):
    paths = sorted((real_data / "pothole_br_df" / "images").iterdir())
    photographs = [Image.open(path).convert("RGB") for path in paths[:120]]
    record = record_images(stack_hashes(map(hash_jpeg, photographs[::2])), [Split.TRAIN] * len(photographs[::2]))
    assert record.find_copies(stack_hashes(map(hash_jpeg, photographs[1::2]))) == {}
    for share in (0.025, 0.05):
        crops = stack_hashes(hash_jpeg(cropped(photograph, share)) for photograph in photographs)
        found = record.find_copies(crops)
        assert set(found) <= set(range(0, len(photographs), 2))
        assert len(found) >= 0.98 * len(photographs[::2])


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-8] + np.uint64(9).tobytes()])
def test_a_damaged_record_is_refused(record, damage):
    with pytest.raises(ArtifactError):
        parse_seen_images(damage(record.to_bytes()))


def test_a_record_of_no_images():
    record = parse_seen_images(record_images(stack_hashes([]), []).to_bytes())
    assert record.find_copies(stack_hashes([])) == {}
