"""The signal registry and its activations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from specexit.method.signals import NAMES, activate, column

raw_values = arrays(np.float32, (5, 4), elements=st.floats(-1e6, 1e6, width=32))


def test_the_order_is_the_file_formats():
    assert NAMES == ("confidence", "progress", "remaining", "validity")


@given(raw_values)
def test_values_are_probabilities_strictly_inside_0_and_1_or_positive_counts(raw):
    values = activate(raw)
    assert values.dtype == np.float32
    probabilities = np.delete(values, column("remaining"), axis=1)
    assert ((probabilities > 0) & (probabilities < 1)).all()
    assert ((values[:, column("remaining")] > 0) & np.isfinite(values[:, column("remaining")])).all()


@given(raw_values)
def test_activations_rise_with_the_raw_value(raw):
    order = np.sort(raw, axis=0)
    assert (np.diff(activate(order), axis=0) >= 0).all()


def test_known_values():
    raw = np.array([[np.log(3), -np.log(3), np.log(120), 0]], np.float32)
    # float32 keeps seven digits, and exp multiplies the error of its argument by it (here about 5).
    np.testing.assert_allclose(activate(raw), [[0.75, 0.25, 120, 0.5]], rtol=2e-6)


def test_infinities_are_clamped_and_what_is_no_number_stays_none():
    values = activate(np.array([[np.nan, np.inf, -np.inf, 0.0], [-np.inf, 1e9, -1e9, np.nan]]))
    assert np.isnan(values).tolist() == [[True, False, False, False], [False, False, False, True]]
    np.testing.assert_array_equal(values[0, 1:3], values[1, 1:3])


def test_an_unknown_signal_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'doubt' does not exist, expected one of confidence, progress, remaining"):
        column("doubt")
