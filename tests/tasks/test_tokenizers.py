"""Character tokenizer: round trips, special ids, and characters it does not know."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.tasks import CharTokenizer

ALPHABET = "0123456789+-*=é✓"
UNREADABLE = "\ufffd"


@given(st.text(ALPHABET), st.lists(st.integers(0, 40)))
def test_round_trip_also_with_anything_after_the_end(text, rest):
    tokenizer = CharTokenizer(ALPHABET)
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert all(tokenizer.eos_id < i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_id, *rest]) == text


def test_ids_are_distinct_and_fill_the_vocabulary():
    tokenizer = CharTokenizer(ALPHABET)
    special = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id]
    assert sorted(special + tokenizer.encode(ALPHABET)) == list(range(tokenizer.vocab_size))
    assert tokenizer.stop_ids == (tokenizer.eos_id,)


def test_special_ids_in_a_completion_are_visible_to_the_grader():
    tokenizer = CharTokenizer("46")
    four, six = tokenizer.encode("46")
    for intruder in (tokenizer.pad_id, tokenizer.bos_id, tokenizer.vocab_size, -1):
        assert tokenizer.decode([four, intruder, six]) == f"4{UNREADABLE}6"


def test_decodes_arrays_and_nothing():
    tokenizer = CharTokenizer("46")
    assert tokenizer.decode(np.array(tokenizer.encode("64"), np.int32)) == "64"
    assert tokenizer.decode([]) == ""
    assert tokenizer.encode("") == []


def test_unknown_character_is_named():
    with pytest.raises(ValueError, match="character 'x' at position 1 of '4x'"):
        CharTokenizer("46").encode("4x")


@pytest.mark.parametrize("alphabet", ["", "aba", f"a{UNREADABLE}"])
def test_bad_alphabet(alphabet):
    with pytest.raises(ValueError, match="alphabet"):
        CharTokenizer(alphabet)
