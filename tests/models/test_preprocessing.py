"""How far the decoder may reduce an image: never below what is resized to the model's input, with a margin."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streetvision.io.resize import DECODE_MARGIN, fit_box
from streetvision.models.config import ClassifierDescription, FusionDescription, LseConfig, ViewsConfig
from streetvision.models.preprocessing import input_decode_size
from streetvision.models.views import plan_views

SIDE = st.integers(1, 5000)


def description(size, preprocessing=2):
    return ClassifierDescription(
        backbone={}, image_size=size, preprocessing=preprocessing, pooling="cls", head={"kind": "linear"}
    )


@given(st.tuples(SIDE, SIDE), st.tuples(st.integers(16, 512), st.integers(16, 512)))
def test_version_1_reduces_nothing(image, size):
    assert input_decode_size(image, description(size, 1)) == image
    fusion = FusionDescription(mode="multiview_mean", views=ViewsConfig())
    assert input_decode_size(image, description(size, 1), fusion) == image


def test_a_description_without_a_version_has_version_1():
    fields = description((32, 32)).model_dump(exclude={"preprocessing"})
    assert ClassifierDescription.model_validate(fields).preprocessing == 1
    with pytest.raises(ValueError, match="preprocessing"):
        ClassifierDescription.model_validate(fields | {"preprocessing": 3})


@given(st.tuples(SIDE, SIDE), st.tuples(st.integers(16, 512), st.integers(16, 512)))
def test_the_whole_image_keeps_the_margin(image, size):
    least = input_decode_size(image, description(size))
    inner = fit_box(image, size).size
    for side, kept, needed in zip(image, least, inner, strict=True):
        assert kept == side or DECODE_MARGIN * needed <= kept < DECODE_MARGIN * needed + 1


@given(
    st.tuples(st.integers(50, 5000), st.integers(50, 5000)),
    st.tuples(st.integers(16, 512), st.integers(16, 512)),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.2, 0.5]),
)
def test_every_view_keeps_the_margin(image, size, rows, columns, overlap):
    views = ViewsConfig(rows=rows, columns=columns, overlap=overlap)
    fusion = FusionDescription(mode="multiview_mean", views=views)
    least = input_decode_size(image, description(size), fusion)
    for box in plan_views(*image, views):
        inner = fit_box(box.size, size).size
        for side, kept, part, needed in zip(image, least, box.size, inner, strict=True):
            assert kept == side or part * kept / side >= DECODE_MARGIN * needed - 1e-9


def test_a_dense_pass_keeps_the_margin_at_its_own_size():
    fusion = FusionDescription(mode="dense", pooling=LseConfig(), dense_size=(200, 300))
    least = input_decode_size((1000, 1500), description((32, 48)), fusion)
    assert least == (230, 345)
