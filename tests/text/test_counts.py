"""How many things phrases speak of."""

import pytest

from lgjax.text.counts import number_of_things


@pytest.mark.parametrize(
    ("phrase", "number"),
    [
        *(
            ("two dogs", 2),
            ("The four red cars", 4),
            ("both cats", 2),
            ("a pair of shoes", 2),
            ("12 birds", 12),
        ),
        *(("a dog", 1), ("dogs", 1), ("", 1), ("the", 1), ("one of two dogs", 1), ("a pair of scissors", 1)),
        *(("a man with two dogs", 1), ("the left one of the three", 1), ("two-storey house", 1)),
    ],
)
def test_a_number_counts_where_the_phrase_begins_with_it(phrase: str, number: int):
    assert number_of_things(phrase) == number
