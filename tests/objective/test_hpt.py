"""HPT against the golden numbers and loops: the gate, the unified estimator's instances, the whole loss."""

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

from salt_jax.objective import hpt
from salt_jax.objective.hpt import demonstration_weight, hpt_loss, unified_loss
from salt_jax.objective.losses import policy_loss
from tests.objective.golden_methods import PRECISIONS, assert_close, case, evaluate
from tests.one_program import one_program

hpt_gate, success_rate = one_program(hpt.hpt_gate), one_program(hpt.success_rate)

B, G, T, S = 3, 4, 3, 5


def test_golden_gate(golden):
    inputs, outputs = case(golden, "7.hpt.gate")
    n = inputs["n"]
    for kind, gamma in (("gamma0", 0.0), ("gamma_2_8", 2 / 8)):
        for name, correct in (("zero_correct", 0), ("one_correct", 1), ("two_correct", 2), ("three_correct", 3)):
            if name not in outputs[kind]:
                continue
            rewards = np.array([[1.0] * correct + [0.0] * (n - correct)])
            for precision in PRECISIONS:
                rl, sft = evaluate(lambda r, g=gamma: hpt_gate(success_rate(r), g), rewards, precision=precision)
                assert [float(rl[0]), float(sft[0])] == outputs[kind][name]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_loss(golden, precision):
    inputs, outputs = case(golden, "7.hpt.loss")
    rewards = np.array([inputs["A"]["v"], inputs["B"]["v"]], float)
    old = np.full((2, 2, 1), -1.0)
    new = old.copy()
    new[1, :, 0] += np.log(inputs["B"]["ratio"])
    demo = np.array([inputs["A"]["demo_logp"], [np.nan, np.nan]], float)

    def whole(new, rewards, demo, form):
        return hpt_loss(
            new, old.astype(new.dtype), old < 0, rewards, demo, ~jnp.isnan(demo),
            max_length=inputs["L_max"], sft_coef=inputs["sft_coef"], form=form,
        )  # fmt: skip

    release = evaluate(functools.partial(whole, form="release"), new, rewards, demo, precision=precision)
    assert_close(release.sft, outputs["sft"], precision)
    assert_close(release.rl, outputs["rl_official_code_sum_over_Lmax"], precision)
    assert_close(release.total, outputs["total_code"], precision)
    paper = evaluate(functools.partial(whole, form="paper"), new, rewards, demo, precision=precision)
    assert_close(paper.rl, outputs["rl_paper_eq11_mean_subtract_clip02"], precision)
    assert_close(paper.total, (paper.rl + paper.sft) / 2, precision)


def loss_by_loop(new, old, mask, rewards, rewarded, demo, demo_mask, form, gamma=0.25, limit=6, coef=0.3, clip=0.2):
    rl, sft, rl_prompts, sft_prompts, sft_tokens = 0.0, 0.0, 0, 0, 0
    for b in range(B):
        there = [i for i in range(G) if rewarded[b][i]]
        if not there:
            continue
        if sum(rewards[b][i] == 1 for i in there) / len(there) > gamma + 1e-9:
            rl_prompts += 1
            mean = sum(rewards[b][i] for i in there) / len(there)
            for i in there:
                a = rewards[b][i] - mean
                for t in range(T):
                    if mask[b][i][t]:
                        r = math.exp(new[b, i, t] - old[b, i, t])
                        clipped = min(r * a, min(max(r, 1 - clip), 1 + clip) * a)
                        rl -= a * r / limit if form == "release" else clipped / len(there)
        else:
            sft_prompts += 1
            tokens = [-demo[b, s] for s in range(S) if demo_mask[b][s]]
            sft_tokens += len(tokens)
            sft += coef * (sum(tokens) if form == "release" else sum(tokens) / max(len(tokens), 1))
    if form == "release":
        sft /= max(sft_tokens, 1)
        return rl + sft, rl, sft
    return (rl + sft) / B, rl / max(rl_prompts, 1), sft / max(sft_prompts, 1)


def example(seed):
    rng = np.random.default_rng(seed)
    rewards = rng.choice([0.0, 0.01, 1.0], size=(B, G))
    rewarded = rng.random((B, G)) < 0.7
    new = -rng.uniform(0.1, 3, size=(B, G, T))
    old = new + rng.normal(scale=0.3, size=new.shape)
    mask, demo_mask = rng.random((B, G, T)) < 0.7, rng.random((B, S)) < 0.7
    return new, old, mask, rewards, rewarded, -rng.uniform(0.1, 3, size=(B, S)), demo_mask


@functools.cache
def compiled(form):
    def both(new, old, mask, rewards, rewarded, demo, demo_mask):
        def loss(new, demo):
            found = hpt_loss(
                new, old, mask, rewards, demo, demo_mask,
                gamma=0.25, max_length=6, form=form, sft_coef=0.3, rewarded=rewarded,
            )  # fmt: skip
            return found.total, found

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(new, demo)

    return jax.jit(both)


@pytest.mark.parametrize("form", ["release", "paper"])
@given(seed=st.integers(0, 10_000))
def test_loss_equals_loops_and_garbage_takes_no_part(form, seed):
    new, old, mask, rewards, rewarded, demo, demo_mask = example(seed)
    expected = loss_by_loop(new, old, mask, rewards, rewarded, demo, demo_mask, form)
    spoil = lambda x, where: np.where(where, x, np.nan)
    with jax.enable_x64(True):
        (_, found), gradients = compiled(form)(
            spoil(new, mask), spoil(old, mask), mask, spoil(rewards, rewarded), rewarded, spoil(demo, demo_mask),
            demo_mask,
        )  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)
    assert all(np.isfinite(g).all() for g in gradients)
    np.testing.assert_array_equal(np.asarray(gradients[0])[~mask], 0.0)
    np.testing.assert_array_equal(np.asarray(gradients[1])[~demo_mask], 0.0)


@pytest.mark.parametrize("form", ["release", "paper"])
def test_gradient_equals_finite_differences(form):
    new, old, mask, rewards, _, demo, demo_mask = example(4)
    rewards[0], rewards[1] = 0.0, [1, 0, 1, 0]
    arguments = {"gamma": 0.0, "max_length": 6, "form": form}
    with jax.enable_x64(True):
        loss = jax.jit(lambda n, d: hpt_loss(n, old, mask, rewards, d, demo_mask, **arguments).total)
        check_grads(loss, (jnp.asarray(new), jnp.asarray(demo)), order=1, modes="rev", atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("form", ["release", "paper"])
def test_batches_of_one_kind_and_of_none(form):
    new, old, mask, rewards, _, demo, demo_mask = example(2)
    everything = np.ones((B, G), bool)
    with jax.enable_x64(True):
        run = lambda rewards, rewarded, mask, demo_mask: compiled(form)(
            new, old, mask, rewards, rewarded, demo, demo_mask
        )
        assert run(rewards * 0 + 1, everything, mask, demo_mask)[0][0] == 0  # all right: no signal, no demonstration
        assert run(rewards * 0, everything, mask, demo_mask)[0][1].rl == 0
        nothing = everything, mask & False, demo_mask & False
        for arguments in ((rewards, ~everything, mask, demo_mask), (rewards, *nothing)):
            (value, _), gradients = run(*arguments)
            assert value == 0
            assert not any(np.asarray(g).any() for g in gradients)


def test_the_gate_of_unknown_and_of_inexact_rates():
    rl, sft = hpt_gate(success_rate(np.float32([[np.nan, np.nan]]), np.zeros((1, 2), bool)))
    assert not np.asarray(rl).any()
    assert not np.asarray(sft).any()
    rate = success_rate(np.float32([[1.0] * 3 + [0.0] * 7]))  # 3/10 in float32 is above the double 0.3
    assert np.asarray(hpt_gate(rate, 0.3)[1]).all()
    half = success_rate(np.float32([[1.0, np.nan, 0.0]]), np.array([[True, False, True]]))
    assert half.tolist() == [0.5]


def test_the_unified_estimator_has_the_gradients_of_its_instances():
    rng = np.random.default_rng(0)
    log_probs = -rng.uniform(0.1, 2, size=(2, 3)).astype(np.float32)
    old = log_probs + np.float32([[-0.5, 0.1, 0.2], [0.4, -0.3, 0.1]])  # the first tokens are past a bound
    advantages, mask = np.float32([0.7, -0.4]), np.array([[True, True, False], [True, True, True]])
    gradient = lambda loss: jax.jit(jax.grad(loss))(log_probs)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    # SFT: the reference is the policy, A = 1
    unified = gradient(lambda p: unified_loss(p, p, jnp.ones(2), mask).sum())
    close(unified, -1.0 * mask)
    # REINFORCE: the same with A
    unified = gradient(lambda p: unified_loss(p, p, advantages, mask).sum())
    close(unified, -advantages[:, None] * mask)
    # PPO: the reference drew the tokens; stable where the clip does not bind
    ratio = np.exp(log_probs - old)
    clipped = ((advantages[:, None] > 0) & (ratio > 1.2)) | ((advantages[:, None] < 0) & (ratio < 0.8))
    assert (clipped & mask).tolist() == [[True, False, False], [True, False, False]]
    unified = gradient(lambda p: unified_loss(p, old, advantages, mask, ~clipped).sum())
    close(unified, gradient(lambda p: policy_loss(p, old, advantages, mask)[0]))
    # offline: the reference is 1
    unified = gradient(lambda p: unified_loss(p, jnp.zeros((2, 3)), advantages, mask).sum())
    close(unified, -advantages[:, None] * np.exp(log_probs) * mask)
    # garbage where masked
    spoilt = jax.jit(jax.grad(lambda p: unified_loss(p, np.where(mask, old, np.inf), advantages, mask).sum()))(
        np.where(mask, log_probs, np.nan)
    )
    assert np.isfinite(spoilt).all()


def test_demonstrations_add_up_to_their_own_mean():
    losses, denominator = np.array([0.5, 1.5, 4.0]), 40.0
    weight = demonstration_weight(3, denominator, coef=0.3)
    assert float(np.sum(losses * float(weight)) / denominator) == pytest.approx(0.3 * losses.mean(), rel=1e-6)
    assert np.isfinite(demonstration_weight(0, denominator))


def test_errors_name_what_is_wrong():
    new, demo, rewards = np.full((2, 3, 4), -1.0), np.full((2, 5), -1.0), np.zeros((2, 3))
    run = lambda **changed: hpt_loss(**({
        "log_probs": new, "old_log_probs": new, "mask": new < 0, "rewards": rewards, "demo_log_probs": demo,
        "demo_mask": demo < 0, "max_length": 4,
    } | changed))  # fmt: skip
    for changed, message in (
        ({"form": "both"}, "form = 'both' is unknown; allowed: release, paper"),
        ({"max_length": None}, "max_length = None"),
        ({"log_probs": new[0]}, "log_probs must have shape"),
        ({"mask": new[:, :, :2] < 0}, "mask must have shape"),
        ({"demo_log_probs": demo[:1], "demo_mask": demo[:1] < 0}, "demo_log_probs must have shape"),
        ({"rewards": rewards[0]}, r"rewards must have shape \(B, G\)"),
        ({"rewarded": rewards[:, :2] == 0}, "rewarded must have the shape"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**changed)
    with pytest.raises(ValueError, match="advantages must have shape"):
        unified_loss(demo, demo, jnp.zeros(3), demo < 0)
    with pytest.raises(ValueError, match="stable must have the shape"):
        unified_loss(demo, demo, jnp.zeros(2), demo < 0, demo[:1] < 0)
