"""Lp-Reg against the golden numbers and float64 loops: the proxy, which tokens, the whole loss, its gradient."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from salt_jax.objective import SurrogateOptions, policy_loss
from salt_jax.objective.lp_reg import lp_reg_tokens, proxy
from salt_jax.vocab.kept import DROPPED, KeptRule, kept_log_mass, log_proxy
from tests.objective.golden_methods import PRECISIONS, assert_close, case, evaluate
from tests.one_program import one_program

N, T = 3, 4


def lp_reg_loss(
    log_probs, old, advantages, mask, chosen, proxies, kept=None, *, beta=1.0, cap=10.0, form="release"
):
    """The trainer's loss with surrogate 'lp_reg', a token mean."""
    total, denominator, _ = policy_loss(
        log_probs, old, advantages, mask, surrogate="lp_reg", chosen=chosen, log_proxy=proxies, kept_log_mass=kept,
        options=SurrogateOptions(lp_reg_beta=beta, lp_reg_cap=cap, lp_reg_form=form),
    )
    return total / jnp.maximum(denominator, 1)


def tokens_by_loop(log_probs, advantages, mask, proxies, fraction, form):
    """The chosen places as a set of (row, column)."""
    places = [(i, t) for i in range(N) for t in range(T) if mask[i][t]]
    negative = [(i, t) for i, t in places if advantages[i] < 0]
    if form == "release":
        count = max(1, math.floor(round(len(negative) * fraction, 9)))
        if not negative or count == 1:
            return set()
        lowest = sorted(negative, key=lambda place: log_probs[place])[:count]
        return {place for place in lowest if log_probs[place] < proxies[place]}
    count = math.floor(round(len(places) * fraction, 9))
    everything = sorted(log_probs[place] for place in places)
    edge = everything[count] if count < len(everything) else math.inf
    return {place for place in negative if log_probs[place] < edge and proxies[place] > DROPPED}


def loss_by_loop(log_probs, old, advantages, mask, chosen, proxies, kept, beta, cap, form):
    total, tokens = 0.0, 0
    for i in range(N):
        for t in range(T):
            if not mask[i][t]:
                continue
            tokens += 1
            a, r = advantages[i], math.exp(log_probs[i, t] - old[i, t])
            if form == "paper":
                total += -a * min(max(r, 0), cap) - (beta * kept[i, t] if (i, t) in chosen else 0)
            elif (i, t) in chosen:
                x = proxies[i, t] - log_probs[i, t]
                total += -a * r + beta * min(math.exp(x) - x - 1, 10)
            else:
                total += max(-a * r, -a * min(max(r, 0), cap))
    return total / max(tokens, 1)


def example(seed):
    rng = np.random.default_rng(seed)
    log_probs = np.log(rng.uniform(0.01, 1, size=(N, T)).round(2))  # two digits: ties are likely
    proxies = np.where(rng.random((N, T)) < 0.3, DROPPED, log_probs + rng.uniform(-0.2, 0.5, size=(N, T)))
    old = log_probs + rng.normal(scale=0.3, size=(N, T))
    kept = -rng.uniform(0, 0.3, size=(N, T))
    return log_probs, old, rng.choice([-1.0, -0.5, 0.0, 0.7], size=N), rng.random((N, T)) < 0.8, proxies, kept


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_proxy(golden, precision):
    inputs, outputs = case(golden, "5.lpreg.proxy(min-p kappa=.02)")
    found = evaluate(lambda p: proxy(p, inputs["kappa"]), inputs["probs"], precision=precision)
    assert_close(found, outputs["proxy"], precision)
    assert_close(inputs["kappa"] * max(inputs["probs"]), outputs["threshold"], "float64")
    # The whole divergence is minus the log of what is kept.
    rule = KeptRule("min_p", inputs["kappa"])
    mass = lambda p: kept_log_mass(jnp.ones((1, 1), p.dtype), jnp.log(p)[None], rule)
    assert_close(
        evaluate(lambda p: -mass(p).log_mass[0], inputs["probs"], precision=precision),
        outputs["forward_kl_full"], precision,
    )  # fmt: skip
    ratio = lambda p: log_proxy(jnp.log(p)[2:3], mass(p))[0] - jnp.log(p)[2]
    x = evaluate(ratio, inputs["probs"], precision=precision)
    assert_close(np.expm1(x) - x, outputs["k3_at_token2"], precision)


def _batch(inputs):
    log_probs = np.log(inputs["prob"])[None]
    return log_probs, np.array(inputs["adv"], float)[None], np.ones((1, 6), bool), np.array(inputs["log_proxy"])[None]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_release(golden, precision):
    inputs, outputs = case(golden, "5.lpreg.loss(official code, rho=.5, on-policy)")

    def whole(log_probs, advantages, mask, proxies, fraction):
        chosen = lp_reg_tokens(log_probs, advantages, mask, proxies, fraction=fraction)
        loss = lp_reg_loss(log_probs, log_probs, advantages, mask, chosen, proxies, beta=inputs["beta"])
        return chosen, loss

    for name, fraction in (
        ("5.lpreg.loss(official code, rho=.5, on-policy)", inputs["rho"]),
        ("5.lpreg.k==1 means off", case(golden, "5.lpreg.k==1 means off")[0]["rho"]),
    ):
        outputs = case(golden, name)[1]
        chosen, loss = evaluate(
            lambda *arrays, fraction=fraction: whole(*arrays, fraction), *_batch(inputs), precision=precision
        )
        assert np.flatnonzero(chosen).tolist() == outputs["regularised_tokens"]
        assert_close(loss, outputs["loss"], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_paper(golden, precision):
    inputs, outputs = case(golden, "5.lpreg.loss(paper form, rho=.5)")
    batch = case(golden, "5.lpreg.loss(official code, rho=.5, on-policy)")[0]
    kept = np.full((1, 6), -inputs["forward_kl"])

    def whole(log_probs, advantages, mask, proxies, kept):
        chosen = lp_reg_tokens(log_probs, advantages, mask, proxies, fraction=batch["rho"], form="paper")
        loss = lp_reg_loss(log_probs, log_probs, advantages, mask, chosen, proxies, kept, form="paper")
        return chosen, loss

    chosen, loss = evaluate(whole, *_batch(batch), kept, precision=precision)
    assert np.flatnonzero(chosen).tolist() == outputs["regularised_tokens"]
    assert_close(loss, outputs["loss"], precision)
    assert sorted(batch["prob"])[3] == inputs["delta_rho"]


@functools.cache
def compiled(form, fraction):
    def both(log_probs, advantages, mask, proxies, old, kept):
        chosen = lp_reg_tokens(log_probs, advantages, mask, proxies, fraction=fraction, form=form)
        arguments = old, advantages, mask, chosen, proxies, kept
        loss = lambda p: lp_reg_loss(p, *arguments, beta=0.7, cap=1.1, form=form)
        return chosen, jax.value_and_grad(loss)(log_probs)

    return jax.jit(both)


@pytest.mark.parametrize("form", ["release", "paper"])
@given(seed=st.integers(0, 10_000), fraction=st.sampled_from([0.0, 0.29, 0.75, 1.0]))
def test_choice_and_loss_equal_loops(form, seed, fraction):
    log_probs, old, advantages, mask, proxies, kept = example(seed)
    expected = tokens_by_loop(log_probs, advantages, mask, proxies, fraction, form)
    spoilt = np.where(mask, log_probs, np.nan)
    with jax.enable_x64(True):
        unmasked = [np.where(mask, x, np.nan) for x in (proxies, old, kept)]
        chosen, (loss, gradient) = compiled(form, fraction)(spoilt, advantages, mask, *unmasked)
    assert {tuple(place) for place in np.argwhere(np.asarray(chosen))} == expected
    wanted = loss_by_loop(log_probs, old, advantages, mask, expected, proxies, kept, 0.7, 1.1, form)
    assert float(loss) == pytest.approx(wanted, rel=1e-12, abs=1e-12)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.asarray(gradient)[~mask], 0.0)


def test_fractions_of_many_tokens_are_exact():
    """⌊0.29 · 100⌋ is 29; in binary floating point 0.29 · 100 is 28.999…"""
    log_probs = np.linspace(-5.0, -0.1, 100, dtype=np.float32).reshape(1, 100)
    ones = np.ones((1, 100), bool)
    for fraction in (0.29, 0.005, 0.07, 1.0):
        choose = jax.jit(functools.partial(lp_reg_tokens, fraction=fraction))
        chosen = choose(log_probs, jnp.array([-1.0]), ones, log_probs + 1)
        count = round(fraction * 100, 6) // 1
        np.testing.assert_array_equal(np.asarray(chosen)[0], np.arange(100) < (count if count > 1 else 0))


@pytest.mark.parametrize("form", ["release", "paper"])
def test_gradient_equals_finite_differences(form):
    log_probs, old, advantages, mask, proxies, kept = example(5)
    advantages[0] = -1.0  # whatever the seed gave
    chosen = tokens_by_loop(log_probs, advantages, mask, proxies, 0.75, form)
    where = np.zeros((N, T), bool)
    for place in chosen:
        where[place] = True
    assert where.any()
    with jax.enable_x64(True):
        loss = jax.jit(lambda p, k: lp_reg_loss(p, old, advantages, mask, where, proxies, k, cap=1.1, form=form))
        check_grads(loss, (jnp.asarray(log_probs), jnp.asarray(kept)), order=1, modes="rev", atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("form", ["release", "paper"])
def test_nothing_to_choose(form):
    log_probs, old, _, _, proxies, kept = example(1)
    everything = np.ones((N, T), bool)
    for advantages, present in ((np.array([1.0, 0.0, 2.0]), everything), (-np.ones(N), ~everything)):
        with jax.enable_x64(True):
            assert not compiled(form, 1.0)(log_probs, advantages, present, log_probs + 1, old, kept)[0].any()
    empty = lambda p: lp_reg_loss(p, old, -np.ones(N), ~everything, everything, proxies, kept, form=form)
    value, gradient = jax.jit(jax.value_and_grad(empty))(np.full((N, T), np.nan, np.float32))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0.0)


def test_a_penalty_beyond_its_bound_has_no_gradient():
    log_probs, mask = np.float32([[-30.0]]), np.ones((1, 1), bool)
    loss = lambda p: lp_reg_loss(p, log_probs, jnp.array([0.0]), mask, mask, jnp.array([[-0.1]]))
    value, gradient = jax.jit(jax.value_and_grad(loss))(log_probs)
    assert (float(value), float(np.asarray(gradient)[0, 0])) == (10.0, 0.0)


def test_fixed_threshold_and_empty_proxy():
    fixed = one_program(proxy)
    p = np.float32([0.6, 0.3, 0.1])
    assert fixed(p, 0.25, form="fixed").tolist() == pytest.approx([2 / 3, 1 / 3, 0.0])
    assert fixed(p, 0.9, form="fixed").tolist() == [0.0, 0.0, 0.0]
    gradient = jax.jit(jax.grad(lambda p: proxy(p).sum()))(np.float32([0.6, 0.4]))
    np.testing.assert_array_equal(gradient, 0.0)


def test_errors_name_what_is_wrong():
    p, row, ones = np.full((2, 3), -1.0), np.zeros(2), np.ones((2, 3), bool)
    for call, message in (
        (lambda: lp_reg_tokens(p, row, ones, p, form="both"), "form = 'both' is unknown; allowed: release, paper"),
        (lambda: lp_reg_tokens(p, row, ones, p, fraction=1.5), "fraction = 1.5"),
        (lambda: lp_reg_tokens(p, np.zeros(3), ones, p), "advantages must have shape"),
        (lambda: lp_reg_tokens(p, row, ones[:, :2], p), "mask must have the shape"),
        (lambda: lp_reg_tokens(p[0], row, ones, p), r"log_probs must have shape \(N, T\)"),
        (lambda: lp_reg_loss(p, p, row, ones, ones, p, form="paper"), "needs kept_log_mass"),
        (lambda: proxy(p, 0.0), "value = 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
