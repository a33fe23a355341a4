"""REC's masks, weights and recipes: edges, golden numbers, and its identity with PPO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salt_jax.objective.losses import policy_loss
from salt_jax.objective.rec import rec_mask, rec_weight
from salt_jax.objective.surrogate_options import REC_MASKS, REC_WEIGHTS
from salt_jax.objective.surrogates import SurrogateOptions
from tests.objective.golden_methods import PRECISIONS, assert_close, case, evaluate
from tests.reference import surrogates as reference

RATIOS = np.array([0.1, 0.4, 0.5, 0.8, 1.0, 1.2, 1.3, 3.0, 4.0])  # among them every edge of the defaults


@pytest.mark.parametrize("kind", REC_MASKS)
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 2.0])
def test_masks_equal_loops_on_their_edges(kind, advantage):
    ratios, sequence = np.meshgrid(RATIOS, RATIOS[::3])
    with jax.enable_x64(True):
        found = rec_mask(kind, jnp.asarray(ratios), jnp.asarray(sequence), jnp.full(ratios.shape, advantage))
    expected = [
        [reference.rec_kept(kind, r, s, advantage, 0.2, 0.2, 0.6, 2.0) for r, s in zip(*rows, strict=True)]
        for rows in zip(ratios, sequence, strict=True)
    ]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", REC_WEIGHTS)
def test_weights_equal_loops(kind):
    rng = np.random.default_rng(1)
    ratios, sequence, advantages = np.exp(rng.normal(size=(3, 4, 5)))
    with jax.enable_x64(True):
        found = rec_weight(
            kind, jnp.asarray(ratios), jnp.asarray(sequence), jnp.asarray(advantages), temperature=0.3
        )
    loops = np.vectorize(lambda r, s, a: reference.rec_factor(kind, r, s, a, 0.3))
    np.testing.assert_allclose(found, loops(ratios, sequence, advantages), rtol=1e-12)


def test_a_huge_advantage_does_not_overflow_red_weight():
    one = jnp.ones((1, 1))
    np.testing.assert_allclose(rec_weight("advantage", one, one, 1e6 * one), np.exp(20.0), rtol=1e-6)


def test_unknown_names_are_one_clear_line():
    one = jnp.ones((1, 1))
    with pytest.raises(ValueError, match="rec_mask = 'inner' is unknown; allowed: none, one_side"):
        rec_mask("inner", one, one, one)
    with pytest.raises(ValueError, match="rec_weight = 'r' is unknown; allowed: none, importance"):
        rec_weight("r", one, one, one)


# name in the file -> (mask, weight, regulariser)
RECIPES = {
    "REINFORCE": ("none", "none", "none"),
    "REC_OneSide_NoIS": ("one_side", "none", "none"),
    "REC_OneSide_IS": ("one_side", "importance", "none"),
    "REC_TwoSide_IS": ("two_side", "importance", "none"),
    "REC_Ring_NoIS": ("ring", "none", "none"),
    "OPMD_k2_c0p1": ("none", "none", "k2"),
    "AsymRE_fwdkl_c0p1": ("none", "none", "forward_kl"),
    "RED_Weight_temp1": ("none", "advantage", "none"),
}


def recipe_loss(mask, weight, regularizer, aggregation="token_mean", clip_low=0.2, clip_high=0.2):
    options = SurrogateOptions(clip_low, clip_high, rec_mask=mask, rec_weight=weight, rec_regularizer=regularizer)

    def loss(new, old, advantages):
        everywhere = jnp.ones(new.shape, bool)
        total, denominator, _ = policy_loss(
            new, old, advantages, everywhere, surrogate="rec", options=options, aggregation=aggregation
        )
        return total / denominator

    return loss


def arrays_of(inputs):
    new = np.log(inputs["new_prob"])
    return new, new - np.log(inputs["ratio"]), np.array(inputs["adv"])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_recipes_golden(golden, precision):
    inputs, outputs = case(golden, "9.rec")
    assert inputs["eps"] == [0.2, 0.2]
    assert inputs["eps_prime"] == [0.6, 2.0]
    for name, recipe in RECIPES.items():
        found = evaluate(recipe_loss(*recipe), *arrays_of(inputs), precision=precision)
        assert_close(found, outputs[name], precision)
    for kind in ("one_side", "two_side", "ring"):
        ratio = np.array(inputs["ratio"])
        advantages = np.array(inputs["adv"])[:, None] * np.ones_like(ratio)
        found = evaluate(lambda r, a, kind=kind: rec_mask(kind, r, r, a), ratio, advantages, precision=precision)
        np.testing.assert_array_equal(found, outputs[f"mask_{kind}"])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradient_of_one_side_with_importance_is_that_of_ppo(golden, precision):
    inputs, _ = case(golden, "9.rec")
    _, outputs = case(golden, "9.rec.grad_identity")
    arrays = arrays_of(inputs)
    found = evaluate(jax.grad(recipe_loss("one_side", "importance", "none")), *arrays, precision=precision)
    assert_close(found, outputs["dloss_dlogp_REC_OneSide_IS"], precision)

    def ppo(new, old, advantages):
        total, denominator, _ = policy_loss(new, old, advantages, jnp.ones(new.shape, bool))
        return total / denominator

    assert_close(evaluate(jax.grad(ppo), *arrays, precision=precision), found, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gspo_recipes_golden(golden, precision):
    inputs, outputs = case(golden, "9.rec_gspo(lo=3e-4,hi=4e-4)")
    new = np.log(inputs["new_prob"])
    arrays = (new, new - np.array(inputs["log_ratio"]), np.array(inputs["adv"]))
    for name, weight in (("NoIS", "none"), ("IS", "gspo_importance")):
        loss = recipe_loss("gspo_one_side", weight, "none", "seq_mean_token_mean", 3e-4, 4e-4)
        assert_close(evaluate(loss, *arrays, precision=precision), outputs[name], precision)
