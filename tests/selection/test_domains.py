"""DGA's mirror step against its formula."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from salt_jax.selection import domain_step
from tests.objective.golden_methods import PRECISIONS, evaluate
from tests.selection.golden_vectors import assert_printed, block, printed


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden(golden, precision):
    step = lambda w, a: domain_step(w, a, 1.0, decay=0.9)
    found = evaluate(step, [0.5, 0.3, 0.2], [0.4, -0.1, 0.2], precision=precision)
    text = block(golden, 11)
    assert_printed(found.weights, printed(text, "alpha'"), precision)
    assert_printed(found.average, printed(text, "EMA beta=.9 output"), precision)


def test_two_steps_equal_the_loop():
    weights, average = np.array([2.0, 6.0, 0.0]), None
    found, kept = jnp.asarray(weights), None
    for alignments in ([0.3, -0.2, 9.0], [1.0, 2.0, 3.0]):
        raised = weights * np.exp(0.5 * np.array(alignments))
        average = weights / weights.sum() if average is None else average
        weights = raised / raised.sum()
        average = 0.7 * average + 0.3 * weights
        found, kept = domain_step(found, jnp.array(alignments), 0.5, decay=0.7, average=kept)
        np.testing.assert_allclose(found, weights, rtol=1e-6)
        np.testing.assert_allclose(kept, average, rtol=1e-6)
    assert float(found[2]) == 0  # a domain that is out stays out


def test_extremes():
    found = domain_step(jnp.array([0.5, 0.5]), jnp.array([1e30, -1e30]), 1.0)
    assert found.weights.tolist() == [1, 0]
    same = domain_step(jnp.array([0.25, 0.75]), jnp.array([5.0, 5.0]), 3.0)
    np.testing.assert_allclose(same.weights, [0.25, 0.75], rtol=1e-6)
    np.testing.assert_array_equal(same.average, same.weights)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"must both be \(k,\)"):
        domain_step(jnp.ones(2), jnp.ones(3), 1.0)
    with pytest.raises(ValueError, match=r"decay = 1.0 .* \[0, 1\)"):
        domain_step(jnp.ones(2), jnp.ones(2), 1.0, decay=1.0)
    with pytest.raises(ValueError, match="average must be"):
        domain_step(jnp.ones(2), jnp.ones(2), 1.0, average=jnp.ones(3))
