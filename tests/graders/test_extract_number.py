"""The last number of a text: a table of forms."""

import pytest

from salt_jax.graders.extract import last_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4 - 1 is 3.", "3"),
        ("= -12", "-12"),
        ("so −7", "-7"),  # the sign of typography
        ("1,234 and 5,678.25!", "5678.25"),
        ("10-3", "3"),  # a difference, not a negative number
        ("x2 = 5 m2", "5"),  # digits inside a word are no number
        ("the year 1,23", "23"),
        ("none", None),
        ("", None),
        ("3.0", "3.0"),
        ("v1.2.3", None),
        ("1,2345", "2345"),  # no thousands
        ("5e3", "5000"),
        ("2.5E-3 m", "0.0025"),
    ],
)
def test_forms(text, number):
    assert last_number(text) == number
