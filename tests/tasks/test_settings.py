"""What the tasks share: the last box of a text, paths, checks."""

import ml_collections
import pytest

from salt_jax.tasks import settings

BOXES = [
    (r"\boxed{5}", "5"),
    (r"first \boxed{1}, then \boxed{\frac{3}{4}}.", r"\frac{3}{4}"),
    (r"$\boxed{\text{(A)}}$", r"\text{(A)}"),
    (r"\fbox{7}", "7"),
    (r"\fbox{7} and \boxed{8}", "8"),
    (r"\boxed{7} and \fbox{8}", "8"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\left\{x \mid x > 0\right.}", r"\left\{x \mid x > 0\right."),  # an escaped brace has no partner
    (r"\boxed{a \\{b}}", r"a \\{b}"),  # a line break, then a brace
    (r"\boxed{6}, not \boxed{7", "6"),  # the last one is cut off
    (r"\boxed 5", "5"),
    (r"$\boxed 5$.", "5"),
    (r"\boxed{}", None),
    (r"\boxed", None),
    ("5", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "answer"), BOXES)
def test_boxed_answer(text, answer):
    assert settings.boxed_answer(text) == answer


@pytest.mark.parametrize("value", [3, None, ["a", ""], [3], {"a": 1}])
def test_what_is_no_path(value):
    with pytest.raises(
        ValueError, match="^train = .* is not allowed; allowed: the path of a file, or several"
    ):
        settings.files_of("train", value)


def test_sections_of_a_config():
    section = ml_collections.ConfigDict({"a": {"b": 1}})
    assert settings.plain("settings", section) == {"a": {"b": 1}}
    assert type(settings.plain("settings", section)["a"]) is dict
    for value in (3, "a", [1], {1: 2}):
        with pytest.raises(ValueError, match="^settings = "):
            settings.plain("settings", value)


@pytest.mark.parametrize("value", [True, 2.0, "2", None, 0, 9])
def test_integers(value):
    with pytest.raises(ValueError, match=r"^seed = .* is not allowed; allowed: integers from 1 to 8"):
        settings.check_integer(1, 8, seed=value)
    settings.check_integer(1, 8, seed=8)


def test_flags_and_choices():
    with pytest.raises(ValueError, match="^boxed_only = 1 is not allowed; allowed: True, False"):
        settings.math_grader(1)
    with pytest.raises(ValueError, match=r"^wrapper = \[\] is not allowed; allowed: 'strip', 'keep'"):
        settings.check_choice(("strip", "keep"), wrapper=[])
    assert dict(settings.math_grader(False).arguments) == {}
    assert dict(settings.math_grader(True, True).arguments) == {"boxed_only": True, "last_number": True}
