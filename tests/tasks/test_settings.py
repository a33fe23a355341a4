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


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory and the home folder."""
    for name in ("b.jsonl", "a.jsonl", "c.csv", "d,e.jsonl", "[f].jsonl", "inner/g.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"a": 1}\n')
    (tmp_path / "z.jsonl").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("a.jsonl,b.jsonl", "a.jsonl b.jsonl"),
        ("b.jsonl, a.jsonl", "b.jsonl a.jsonl"),
        ("('b.jsonl', 'a.jsonl')", "b.jsonl a.jsonl"),
        ("['a.jsonl']", "a.jsonl"),
        ("('a.jsonl',)", "a.jsonl"),
        (["a.jsonl", "c.csv"], "a.jsonl c.csv"),
        ("[ab].jsonl", "a.jsonl b.jsonl"),
        ("?.jsonl", "a.jsonl b.jsonl"),
        ("**/g.jsonl", "inner/g.jsonl"),
        ("c.csv,[ab].jsonl", "c.csv a.jsonl b.jsonl"),
        ("[f].jsonl", "[f].jsonl"),
        ("absent.jsonl", "absent.jsonl"),  # which read_rows says
        ("~/a.jsonl,~/b.jsonl", "{}/a.jsonl {}/b.jsonl"),
        ("~/?.csv", "{}/c.csv"),
    ],
)
def test_several_files(folder, value, names):
    assert settings.files_of("train", value) == tuple(names.replace("{}", str(folder)).split())


def test_a_file_whose_name_has_a_comma(folder):
    assert settings.files_of("train", "d,e.jsonl") == ("d,e.jsonl",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("*.parquet", r"train: \*.parquet matches no file"),
        ("a.jsonl,*.parquet", r"train: \*.parquet matches no file"),
        ("a.jsonl,a.jsonl", "train names a.jsonl twice; name each file once"),
        (("a.jsonl", "./a.jsonl"), "train names ./a.jsonl twice"),
        ("a.jsonl,?.jsonl", "train names a.jsonl twice"),
        ("a.jsonl,,b.jsonl", "train = .* is not allowed; allowed: the path of a file, or several"),
        ("(1, 2)", "train = .* is not allowed"),
        ("('a.jsonl')", "train = .* is not allowed"),
        ("$DATA/a.jsonl", "train: .DATA/a.jsonl begins with a variable"),
        (["a.jsonl", "https://x.org/b.jsonl"], "train: https://x.org/b.jsonl is an address"),
        ("~nobody-of-this-name/a.jsonl", "train: ~nobody-of-this-name/a.jsonl is in the home folder of a user who"),
    ],
)
def test_files_that_will_not_do(folder, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
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
