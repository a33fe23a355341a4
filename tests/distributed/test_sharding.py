"""The table of rules, and a step on eight devices that equals the step on one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from salt_jax.distributed.sharding import batch_sharding, make_mesh, path_of, replicated, tree_shardings
from salt_jax.learner import state as state_lib
from salt_jax.learner import step as step_lib
from salt_jax.learner.reweighting import first_basis
from salt_jax.learner.settings import OptimizerConfig
from salt_jax.policy.sampler import sample
from tests import training_setup as setup
from tests.learner.test_family_step import FAMILIES

EIGHT = {"sampling.prompts_per_step": 8}
EXACT, OFF = {"salt.enabled": True}, {"salt.enabled": False}
SKETCH = {"salt.feature": "lm_head_sketch", "salt.rank_vocab": 8, "salt.rank_hidden": 4}
LONG = [
    ((2, 2, 2), OFF, 2), ((8, 1, 1), EXACT, 2), ((2, 2, 2), SKETCH, 2), ((1, 4, 2), SKETCH, 1),
    *(((2, 2, 2), settings, 2) for settings in FAMILIES.values()),
]  # fmt: skip
MESHES = {"data=2,fsdp=2,tensor=2": (2, 2, 2), "data=8": (8, 1, 1)}


def by_path(shardings):
    leaves = jax.tree_util.tree_leaves_with_path(shardings)
    return {path_of(path): sharding.spec for path, sharding in leaves}


def test_where_parameters_and_moments_live():
    config = dataclasses.replace(setup.tiny_run().policy, qk_norm=True)
    optimizer = state_lib.make_optimizer(OptimizerConfig(1e-3, 0, "linear", 0.9, 0.999, 1e-8, 0.0, 1.0), 10)
    params = setup.policy_and_params(config)[1]
    state = jax.eval_shape(
        lambda params: state_lib.init_state(params, optimizer, jax.random.key(0), keep_reference=True), params
    )
    specs = by_path(tree_shardings(state, make_mesh()))
    column, row = PartitionSpec(None, "fsdp", "tensor"), PartitionSpec(None, "tensor", "fsdp")
    expected = {
        "embedding": PartitionSpec("tensor", "fsdp"),
        "head": PartitionSpec("fsdp", "tensor"),
        "final_norm": PartitionSpec(),
        **{f"layers/{name}": column for name in ("q", "k", "v", "gate", "up")},
        **{f"layers/{name}": row for name in ("o", "down")},
        **{f"layers/{name}_bias": PartitionSpec(None, "tensor") for name in "qkv"},
        **{f"layers/{name}": PartitionSpec() for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm")},
    }
    for prefix in ("params", "ref_params"):
        found = {path.removeprefix(f"{prefix}/"): s for path, s in specs.items() if path.startswith(f"{prefix}/")}
        assert found == expected
    for moment in ("mu", "nu"):
        found = {path.partition(f"/{moment}/")[2]: s for path, s in specs.items() if f"/{moment}/" in path}
        assert found == expected
    rest = {p: s for p, s in specs.items() if not p.startswith(("params", "ref_params")) and "mu/" not in p}
    counters = [s for path, s in rest.items() if "nu/" not in path]
    assert len(counters) >= 5
    assert set(counters) == {PartitionSpec()}


def test_too_few_devices_are_named():
    with pytest.raises(ValueError, match="4 x 5 x 6 = 120 devices; there are"):
        make_mesh(4, 5, 6)


@pytest.mark.mesh
def test_shards_are_pieces():
    mesh = make_mesh(2, 2, 2)
    params = setup.policy_and_params(setup.tiny_run().policy)[1]
    placed = jax.device_put(params, tree_shardings(params, mesh))
    assert placed["layers"]["q"].addressable_shards[0].data.shape == (2, 4, 4)  # of (2, 8, 8)
    assert placed["layers"]["down"].addressable_shards[0].data.shape == (2, 6, 4)  # of (2, 12, 8)
    assert placed["embedding"].addressable_shards[0].data.shape == (6, 4)  # of (12, 8)
    odd = {"embedding": np.zeros((11, 8)), "head": np.zeros((8, 11))}  # 2 does not divide 11
    placed = jax.device_put(odd, tree_shardings(odd, mesh))
    assert placed["embedding"].addressable_shards[0].data.shape == (11, 4)
    assert placed["head"].addressable_shards[0].data.shape == (4, 11)
    rows = jax.device_put(np.zeros((8, 3)), batch_sharding(mesh))
    assert rows.addressable_shards[0].data.shape == (2, 3)
    assert jax.device_put(rows, replicated(mesh)).addressable_shards[0].data.shape == (8, 3)


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("mesh", "salt", "microbatches"),
    [((2, 2, 2), EXACT, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in (((8, 1, 1), OFF, 1), *LONG))],
    ids=["2x2x2-salt", "8-grpo", "2x2x2-grpo-accumulated", "8-salt-accumulated", "2x2x2-sketch-accumulated",
         "1x4x2-sketch", *FAMILIES],
)  # fmt: skip
def test_eight_devices_equal_one(mesh, salt, microbatches):
    settings = EIGHT | salt
    single, expected = setup.run_step(settings)  # in one part: test_step.py shows that parts do not matter
    mesh = make_mesh(*mesh)
    run = setup.tiny_run(settings | {"learner.microbatches": microbatches})
    state = setup.initial_state(run.objective.needs_reference).replace(sketch_basis=first_basis(run))
    policy = state_lib.make_policy(run.policy, mesh)
    step = step_lib.jit_train_step(run, policy, setup.OPTIMIZER, mesh, state)
    placed = jax.device_put(jax.tree.map(jnp.copy, state), tree_shardings(state, mesh))
    batch = jax.device_put(setup.rollouts(8), batch_sharding(mesh))
    step = step.lower(placed, batch).compile(compiler_options=setup.FAST_COMPILE)
    new, metrics = step(placed, batch)
    assert setup.largest_difference(single.params, setup.initial_state().params) > 0.01
    assert setup.largest_difference(new.params, single.params) <= 1e-5
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
    found = {path: leaf.sharding.spec for path, leaf in jax.tree_util.tree_leaves_with_path(new.params)}
    wanted = dict(jax.tree_util.tree_leaves_with_path(tree_shardings(state.params, mesh)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(new.params):
        assert leaf.sharding.is_equivalent_to(wanted[path], leaf.ndim), (path_of(path), found[path])


@pytest.mark.mesh
def test_the_same_key_gives_the_same_completions_on_eight_devices():
    run, mesh = setup.tiny_run(EIGHT), make_mesh(2, 2, 2)
    policy, params = setup.policy_and_params(run.policy)
    batch = setup.rollouts(8)
    placed = jax.device_put(params, tree_shardings(params, mesh))
    prompts, mask = (jax.device_put(x[::4], batch_sharding(mesh)) for x in (batch.prompts, batch.prompt_mask))
    drawn = setup.compiled(
        lambda params, prompts, mask, key: sample(
            nnx.merge(policy, params), prompts, mask, key,
            group_size=4, config=run.sampling, stop_ids=(setup.STOP, 5), pad_id=setup.PAD,
        )
    )(placed, prompts, mask, jax.random.key(3))  # fmt: skip
    assert np.array_equal(drawn.tokens, batch.completions)
    assert np.array_equal(drawn.mask, batch.completion_mask)
    np.testing.assert_allclose(drawn.log_probs, batch.sampler_log_probs, atol=1e-5)
