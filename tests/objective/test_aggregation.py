"""Aggregations by themselves; with a surrogate they are in test_losses.py."""

import numpy as np
import pytest

from salt_jax.objective.aggregation import AGGREGATIONS, NEED_MAX_LENGTH, WHOLE_BATCH, check_aggregation
from tests.one_program import one_program

MASK = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], np.float32)


@pytest.mark.parametrize(
    ("name", "weights", "denominator"),
    [
        ("token_mean", MASK, 4),
        ("seq_mean_token_mean", MASK / np.array([[3], [1], [1]]), 2),
        ("seq_mean_token_sum", MASK, 2),
        ("dr_grpo", MASK, 3 * 5),
        ("token_sum_norm", MASK, 5),
    ],
)
def test_weights_and_denominators(name, weights, denominator):
    found_weights, found = one_program(AGGREGATIONS[name])(MASK, np.ones(3, np.float32), 5)
    np.testing.assert_allclose(found_weights, weights, rtol=1e-7)
    assert float(found) == denominator
    assert found.dtype == MASK.dtype


def test_only_those_of_whole_batches_have_a_denominator_that_does_not_add_up():
    def denominators(name, mask):
        return float(one_program(AGGREGATIONS[name])(mask, np.ones(len(mask), np.float32), 5)[1])

    apart = {
        name for name in AGGREGATIONS
        if denominators(name, MASK[:1]) + denominators(name, MASK[1:]) != denominators(name, MASK)
    }  # fmt: skip
    assert apart == set(WHOLE_BATCH) == {"token_sum_norm"}


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_max_length_is_asked_for_where_it_is_used(name):
    check_aggregation(name, 5)
    if name in NEED_MAX_LENGTH:
        with pytest.raises(ValueError, match=f"aggregation = '{name}' needs max_length"):
            check_aggregation(name, None)
    else:
        check_aggregation(name, None)
