"""Weak scaling: what a device sends in a step hardly grows with the number of devices."""

from __future__ import annotations

import math

import pytest

from lgjax.train.start import abstract_state
from tests.bench.weak_scaling import rows_of
from tests.train.words import words


def trained_bytes() -> float:
    return 4.0 * sum(math.prod(leaf.shape) for leaf in abstract_state(words()).trained.values())


def test_copies_of_the_model_send_gradients_alone():
    """A ring sends each gradient twice, but for a device's own share."""
    gradients = trained_bytes()
    for row in rows_of(words(), "data", (2, 8)):
        share = (row.devices - 1) / row.devices
        assert row.rows == 4 * row.devices
        assert row.sent.keys() == {"all-reduce"}
        # losses and counts of tokens are a few numbers more
        assert 2 * gradients * share <= row.sent["all-reduce"] < 2.02 * gradients * share


def test_pieces_of_weights_send_the_same_on_any_number_of_devices():
    """Twice the devices, twice the rows: the bytes of a device approach a bound, its state is halved."""
    one, two, four, eight = rows_of(words(), "fsdp", (1, 2, 4, 8))
    assert not one.sent
    sent = [sum(row.sent.values()) * row.devices / (row.devices - 1) for row in (two, four, eight)]
    assert sent == pytest.approx([sent[0]] * 3, rel=0.15)
    # forward and backward gather weights, gradients go back: at least three times, at most a few more
    assert 2 * trained_bytes() < sent[0] < 6 * trained_bytes()
    assert eight.state < four.state < two.state < one.state
    assert eight.state == pytest.approx(one.state / 8, rel=0.3)
