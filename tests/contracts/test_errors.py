from hypothesis import given
from hypothesis import strategies as st

from streetvision.contracts.errors import StreetVisionError, unknown_name


def test_a_near_miss_is_told_the_name_that_was_meant():
    error = unknown_name("loss", "focl", ["simclr", "focal"])
    assert error.message == "there is no loss 'focl'; did you mean 'focal'?"
    assert error.hint == "choose one of: focal, simclr"


def test_what_resembles_nothing_gets_no_guess():
    assert unknown_name("loss", "xyz", ["simclr", "focal"]).message == "there is no loss 'xyz'"


def test_names_with_commas_are_told_apart():
    assert unknown_name("pair", "x", ["loss, focal", "bf16"]).hint == "choose one of: bf16; loss, focal"


@given(
    name=st.text("abcx_'", max_size=8),
    choices=st.lists(st.text("abc_", min_size=1, max_size=8), min_size=1, unique=True),
)
def test_every_choice_is_listed_in_order_and_a_guess_is_one_of_them(name, choices):
    error = unknown_name("phase", name, iter(choices))
    assert error.hint == f"choose one of: {', '.join(sorted(choices))}"
    start = f"there is no phase {name!r}"
    assert error.message in {start, *(f"{start}; did you mean {choice!r}?" for choice in choices)}


def test_the_remedy_stands_below_what_went_wrong_where_there_is_one():
    assert str(StreetVisionError("the disk is full", "free some space")) == "the disk is full\nfree some space"
    assert str(StreetVisionError("the disk is full")) == "the disk is full"
    assert StreetVisionError("the disk is full").hint is None
