"""What is held at once and which route is taken, by counting; symmetric products against whole ones."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax import geometry
from salt_jax.geometry import streaming
from tests.reference.jaxpr import shapes as array_shapes

SHAPES = {"m": 16, "t": 64, "h": 256, "v": 8192}


@pytest.mark.parametrize(
    ("shape", "route"),
    [
        ({"m": 16, "t": 64, "h": 256, "v": 8192}, "features"),
        ({"m": 64, "t": 4, "h": 256, "v": 8192}, "pairs"),  # (64·4)² < 64·4·256 + 64²·256
        ({"m": 8, "t": 1, "h": 64, "v": 500}, "pairs"),
        ({"m": 8, "t": 200, "h": 64, "v": 500}, "features"),
        ({"m": 512, "t": 4, "h": 96, "v": 17}, "features"),  # the states' own products weigh more than V
    ],
)
def test_the_route_of_fewer_multiply_adds_is_taken(shape, route):
    assert streaming.plan(**shape).route == route
    m, t, h, v = shape.values()
    share = lambda n: (1 + 1 / 4) / 2 if n >= 128 and n % 4 == 0 else 1.0
    features, pairs = m * t * v * h + share(m) * m * m * v * h, share(m * t) * (m * t) ** 2 * (v + h)
    assert (pairs < features) == (route == "pairs")


def test_pairs_that_do_not_fit_are_not_taken():
    shape = {"m": 64, "t": 4, "h": 256, "v": 8192}
    assert streaming.plan(**shape, memory_budget=2**26).route == "pairs"
    assert streaming.plan(**shape, memory_budget=2**21).route == "pairs"  # needs 240 KiB, and half of it is there
    assert streaming.plan(**shape, memory_budget=2**18, chunk_size=8).route == "features"
    assert streaming.plan(**shape, total_rows=512).route == "features"
    with pytest.raises(ValueError, match="route 'pairs' needs all 512 rollouts on one device, this layout has 64"):
        streaming.plan(**shape, total_rows=512, route="pairs")


@given(
    m=st.integers(1, 64), t=st.integers(1, 300), h=st.integers(1, 300), v=st.integers(1, 20_000),
    exponent=st.integers(14, 31), itemsize=st.sampled_from([2, 4]),
)  # fmt: skip
def test_a_budget_is_kept_or_refused(m, t, h, v, exponent, itemsize):
    budget = 2**exponent
    try:
        found = streaming.plan(m, t, h, v, itemsize=itemsize, memory_budget=budget, route="features")
    except ValueError as error:
        assert "too small" in str(error)  # noqa: PT017
        assert 8 * m * h * 4 > budget / 8  # 8 columns of features are a good part of it
        return
    assert 1 <= found.chunk_size <= v
    assert m % found.block == 0
    assert found.chunk_size * m * h * 4 <= budget
    assert found.block == 1 or found.chunk_size * found.block * t * 4 <= budget


def test_the_budget_holds_for_what_is_traced():
    m, t, h, v = 8, 40, 16, 3000
    shapes = (jnp.zeros((m, t, h)), jnp.zeros((h, v)), jnp.zeros((m, t), int), jnp.ones((m, t)))
    for budget in (2**15, 2**18):
        run = lambda *args, budget=budget: geometry.lm_head_gram(*args, memory_budget=budget, route="features")
        made = [math.prod(shape) for shape in array_shapes(jax.make_jaxpr(run)(*shapes)) if shape != (h, v)]
        assert 4 * max(made) <= budget  # but for the output projection itself
        assert 4 * max(made) > budget / 4  # and the budget is used


@pytest.mark.parametrize("n", [1, 5, 127, 128, 132, 130])
def test_symmetric_products_equal_whole_ones(n):
    rng = np.random.default_rng(n)
    x, y = (rng.normal(size=(n, 6)).astype(np.float32) for _ in range(2))

    @jax.jit
    def products(x, y):
        lower = streaming.Lower.zeros(n).add_product(x, None).add_product(y, None)
        return lower.rows, lower.full()

    parts, full = products(x, y)
    whole = x.astype(float) @ x.T + y.astype(float) @ y.T
    np.testing.assert_allclose(full, whole, rtol=1e-5, atol=1e-5)
    assert len(parts) == (4 if n >= 128 and n % 4 == 0 else 1)


def test_on_a_gpu_a_symmetric_product_is_whole(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32)
    product = streaming.Lower.zeros(256).add_product(jnp.asarray(x), None)
    assert [row.shape for row in product.rows] == [(256, 256)]
    np.testing.assert_allclose(product.full(), x.astype(float) @ x.T.astype(float), atol=1e-5)


def test_sums_over_blocks():
    m, t = 64, 3
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(m * t, 5)).astype(np.float32) for _ in range(2))

    @jax.jit
    def sums(x, y):
        inner = streaming.Lower.zeros(m * t).add_product(x, None)
        return inner.rows, inner.product_sums(y, t, None).full()

    parts, got = sums(x, y)
    whole = (x.astype(float) @ x.T) * (y.astype(float) @ y.T)
    expected = np.array([[whole[i * t : i * t + t, j * t : j * t + t].sum() for j in range(m)] for i in range(m)])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert len(parts) == 4
