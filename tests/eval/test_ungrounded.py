"""Figures of the filter of ungrounded phrases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgjax.eval.ungrounded import Judged, curve, figures
from tests.parity.cases import metric_cases


@pytest.mark.parametrize("case", metric_cases("ungrounded_phrase_filter"), ids=lambda case: case["id"])
def test_worked_examples(case):
    phrases = [
        Judged(p["phrase"], 0.9 if p["boxes"] else 0.0, p["object_present"])
        for p in case["inputs"]["phrases"]
    ]
    found, want = figures(phrases), case["expected"]
    assert found.phrases == want["n_phrases"]
    assert found.kept == pytest.approx(want["grounded_rate"])
    assert found.absent == pytest.approx(want["hallucinated_phrase_rate"])
    assert found.absent_kept == pytest.approx(want["hallucinated_rate_after_filter"])
    assert found.flag_precision == pytest.approx(want["flag_precision"])
    assert found.flag_recall == pytest.approx(want["flag_recall"])
    assert [p.text for p in phrases if not p.score] == want["flagged"]


phrases = st.lists(st.builds(Judged, st.just("a"), st.floats(0, 1), st.booleans()), max_size=12)


@given(phrases, st.permutations(range(12)))
def test_bounds_and_order(found, order):
    shuffled = [found[i] for i in order if i < len(found)]
    for threshold in (0.0, 0.3, 0.99):
        one = figures(found, threshold)
        assert one == figures(shuffled, threshold)
        shares = (one.kept, one.absent, one.absent_kept, one.flag_precision, one.flag_recall)
        assert all(share is None or 0 <= share <= 1 for share in shares)


@given(phrases)
def test_a_higher_threshold_keeps_less_and_catches_more(found):
    rows = curve(found, (0.0, 0.2, 0.5, 0.9)).rows
    for column, sign in ((1, -1), (4, 1)):
        values = [row[column] for row in rows if isinstance(row[column], float)]
        assert values == sorted(values, key=lambda value: sign * float(value or 0))


def test_a_filter_that_knows_all_leaves_only_what_is_there():
    found = [Judged("a", 0.9 if there else 0.1, there) for there in (True, False, True, False)]
    assert curve(found, (0.2,)).rows == (("0.2", 0.5, 1.0, 1.0, 1.0),)
    assert figures([]).kept is None
