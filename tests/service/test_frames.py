import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.errors import InvalidInputError
from service.frames import LENGTH, pack, unpack

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@given(PLAIN)
def test_frames_plain_values_survive_the_round_trip(value):
    frame = pack(value)

    assert LENGTH.unpack(frame[:4]) == (len(frame) - 4,)
    assert unpack(frame[4:]) == value


@given(hnp.arrays(st.sampled_from(["f4", "f8", "i4", "i8", "u1", "?"]), hnp.array_shapes(min_dims=0, min_side=0)))
def test_frames_arrays_survive_the_round_trip_and_are_writable(array):
    copy = unpack(pack({"array": array})[4:])["array"]

    np.testing.assert_array_equal(copy, array)
    assert copy.dtype == array.dtype
    assert copy.flags.writeable


def test_frames_numpy_scalars_become_plain_numbers():
    assert unpack(pack([np.float32(0.5), np.int64(3), np.bool_(True)])[4:]) == [0.5, 3, True]


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", ["\ud800", {"key": "\udfff"}, {"\ud800": 1}, 2**64, -(2**63) - 1, nested(2000)])
def test_frames_values_that_cannot_be_stored_are_invalid_input(value):
    with pytest.raises(InvalidInputError):
        pack(value)


@pytest.mark.parametrize("innermost", [[], {}, {"key": 1}, "text", None])
def test_frames_whatever_can_be_packed_can_be_unpacked(innermost):
    for depth in range(1010, 1030):
        value = innermost
        for _ in range(depth):
            value = [value]
        try:
            frame = pack(value)
        except InvalidInputError:
            continue
        unpack(frame[4:])
        accepted = depth
    assert accepted > 1010


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([object()]), np.array(["text"])])
def test_frames_values_of_other_types_are_refused(value):
    with pytest.raises(TypeError, match="cannot be carried"):
        pack(value)
