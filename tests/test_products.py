"""float32 means float32 on every device: what a CPU multiplies in full anyway is asked for in the programs.

A GPU's default for float32 products is TF32, a TPU's bfloat16; neither can be seen in the numbers of a CPU.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from salt_jax.learner.reweighting import first_basis
from salt_jax.policy.sampler import sample
from tests import training_setup as setup
from tests.reference.jaxpr import equations


def products(function, *arguments):
    """(dtypes of the operands, precision of both) of every product of a program."""
    found = [
        ({str(variable.aval.dtype) for variable in equation.invars}, equation.params["precision"])
        for equation in equations(jax.make_jaxpr(function)(*arguments))
        if equation.primitive.name == "dot_general"
    ]
    assert len(found) > 20
    return found


def step_products(**changed):
    run = setup.tiny_run({name.replace("__", "."): value for name, value in changed.items()})
    state = setup.initial_state().replace(sketch_basis=first_basis(run))
    return products(setup.bound_step(run), state, setup.rollouts())


SKETCH = {"salt__feature": "lm_head_sketch", "salt__rank_vocab": 8, "salt__rank_hidden": 4}


@pytest.mark.parametrize("changed", [{}, {"policy__attention": "xla"}, SKETCH], ids=["exact", "xla", "sketch"])
def test_every_float32_product_of_a_step_is_in_full(changed):
    assert all(precision == (lax.Precision.HIGHEST,) * 2 for _, precision in step_products(**changed))


def test_every_float32_product_of_the_sampler_is_in_full():
    run = setup.tiny_run()
    draw = functools.partial(sample, group_size=2, config=run.sampling, stop_ids=(setup.STOP,), pad_id=setup.PAD)
    prompts = jnp.ones((2, 3), jnp.int32), jnp.ones((2, 3), bool), jax.random.key(0)
    found = products(draw, setup.merged(run.policy), *prompts)
    assert all(precision == (lax.Precision.HIGHEST,) * 2 for _, precision in found)


def test_products_of_bfloat16_ask_for_no_more_than_they_have():
    found = [at for dtypes, at in step_products(policy__compute_dtype="bfloat16") if dtypes == {"bfloat16"}]
    assert len(found) > 20
    assert all(at in (None, (lax.Precision.DEFAULT,) * 2) for at in found)
