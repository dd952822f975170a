"""skip settings and the choice of layers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from first_cpp import SkipError
from first_cpp.skip import choose_layers, layers_for_share, parse_skip

SHARES = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("value", "parsed"),
    [("auto", "auto"), (None, None), (0, 0.0), (0.25, 0.25), (np.float32(0.5), 0.5), ([3, 1], (1, 3)), ((), ()), ({2}, (2,)),
     (np.array([4, 2]), (2, 4)), (range(2), (0, 1))],
)  # fmt: skip
def test_settings(value, parsed):
    assert parse_skip(value) == parsed


@pytest.mark.parametrize("value", [10**400, -(10**400), np.array(0.5), np.array(3)], ids=str)
def test_values_that_python_itself_chokes_on(value):
    with pytest.raises(SkipError, match="skip="):
        parse_skip(value)


@given(st.one_of(st.text(), st.binary(), st.booleans(), st.floats(), st.integers(), st.lists(st.integers()), st.none(),
                 st.lists(st.floats()), st.dictionaries(st.text(), st.text()), st.complex_numbers()))  # fmt: skip
def test_any_value_is_a_setting_or_a_skip_error(value):
    try:
        parsed = parse_skip(value)
    except SkipError as error:
        assert "skip" in str(error)  # noqa: PT017
    else:
        assert parse_skip(parsed) == parsed


@given(SHARES, st.integers(1, 200))
def test_share_is_the_nearest_whole_number_of_layers(share, n_layer):
    try:
        count = layers_for_share(share, n_layer)
    except SkipError:
        assert share * n_layer + 0.5 >= n_layer - 1e-4
    else:
        assert 0 <= count < n_layer
        assert abs(count - share * n_layer) <= 0.5 + 1e-4


@given(st.data(), SHARES, st.integers(2, 40))
def test_lowest_scores_are_left_out(data, share, n_layer):
    keep = data.draw(st.lists(st.floats(0, 1), min_size=n_layer, max_size=n_layer))
    skippable = data.draw(st.lists(st.booleans(), min_size=n_layer, max_size=n_layer))
    if share * n_layer + 0.5 >= n_layer - 1e-4:
        return
    skipped = choose_layers(keep, share, skippable)
    rest = [keep[i] for i in range(n_layer) if skippable[i] and i not in skipped]
    assert list(skipped) == sorted(set(skipped))
    assert all(skippable[i] for i in skipped)
    assert len(skipped) == min(layers_for_share(share, n_layer), sum(skippable))
    assert max((keep[i] for i in skipped), default=0) <= min(rest, default=1)


def test_ties_go_by_layer_number():
    assert choose_layers([0.5] * 4, 0.5, [True] * 4) == (0, 1)


@given(st.integers(0, 99), st.integers(2, 100))
@example(70, 85)
@example(35, 30)
def test_a_share_means_the_same_stored_as_float32(percent, n_layer):
    share = percent / 100
    if share * n_layer + 0.5 < n_layer - 0.01:
        assert layers_for_share(share, n_layer) == layers_for_share(float(np.float32(share)), n_layer)
