"""The train step: against a float64 loop of GRPO + SALT, and unchanged by how a batch is split, ordered or padded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salt_jax.distributed.sharding import make_mesh
from salt_jax.learner import harvest as harvesting
from salt_jax.learner import step as step_lib
from salt_jax.learner.reweighting import first_basis
from salt_jax.learner.step_metrics import reward_metrics
from salt_jax.objective.objective import loss as policy_objective
from tests import training_setup as setup
from tests.reference import geometry as geometry_reference
from tests.reference import objective as objective_reference
from tests.reference import salt as salt_reference
from tests.reference import transformer as reference
from tests.reference import vocab
from tests.reference.jaxpr import largest_array, shapes
from tests.training_setup import (
    edited,
    initial_state,
    largest_difference,
    rollouts,
    run_step,
    same_bits,
    tiny_run,
)

OFF = {"salt.enabled": False}
# Between them: SALT off and on, every feature, scope and aggregation, KL, entropy bonus, each kind of variant.
SETTINGS = {
    "salt": {},
    "grpo, seq_mean_token_mean": OFF | {"objective.aggregation": "seq_mean_token_mean", "task.correct_from": 0.5},
    "group, taken_token, seq_mean_token_sum, entropy bonus": {
        "salt.scope": "group", "salt.feature": "taken_token", "objective.aggregation": "seq_mean_token_sum",
        "objective.entropy_coef": 0.05, "salt.variant": "scaled",
    },
    "2 rollouts, per_rollout, dr_grpo, KL": {
        "salt.scope": "2", "salt.feature": "per_rollout", "objective.aggregation": "dr_grpo",
        "objective.kl_coef": 0.1, "salt.variant": "entropy_alpha",
    },
    "8 rollouts, permuted": {"salt.scope": "8", "salt.variant": "permuted"},
    "sketch": {"salt.feature": "lm_head_sketch", "salt.rank_vocab": 8, "salt.rank_hidden": 4},
}  # fmt: skip
GRPO, GROUP, PER_ROLLOUT, PERMUTED, SKETCH = list(SETTINGS)[1:]
# Parts of 8 rows, of 4 (a group), of 2 and of 1.
MICROBATCHES = [
    ("salt", 2), ("salt", 8), (GRPO, 8), (GROUP, 4), (PER_ROLLOUT, 16), (PERMUTED, 8),
    (SKETCH, 8),
]  # fmt: skip
QUICK = [("salt", 2)]
# One program for all that watches what a step keeps: its sketch's basis, the range of entropies, a reference policy.
KEEPING = SETTINGS[SKETCH] | {"objective.kl_coef": 0.1, "salt.variant": "entropy_alpha"}


def moved(state, start=None):
    """How far a step moved the parameters: minus the gradient, for SGD of rate 1."""
    start = initial_state() if start is None else start
    return jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), state.params, start.params)


def largest(tree):
    return max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(tree))


def assert_same_step(found, expected, *, metrics=True):
    """Equal gradients and metrics, to float32 rounding."""
    expected_move = moved(expected[0])
    assert largest(expected_move) > 1e-3
    assert largest_difference(moved(found[0]), expected_move) <= 1e-5 * max(1.0, largest(expected_move))
    if metrics:
        for name in found[1].keys() & expected[1].keys():
            np.testing.assert_allclose(found[1][name], expected[1][name], rtol=2e-4, atol=2e-5, err_msg=name)


# Each compiles two programs: the plainest are in `make test`, all in `make slow`.
@pytest.mark.parametrize(
    ("name", "microbatches"),
    [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in MICROBATCHES],
)
def test_microbatches_change_nothing(name, microbatches):
    settings = SETTINGS[name]
    whole = run_step(settings)
    parts = run_step(settings | {"learner.microbatches": microbatches})
    assert parts[1].keys() == whole[1].keys()
    assert_same_step(parts, whole)
    assert same_bits(parts[0].step, whole[0].step)
    if settings.get("salt.enabled", True):
        np.testing.assert_allclose(parts[0].entropy_range, whole[0].entropy_range, rtol=1e-5)
    if name == SKETCH:
        np.testing.assert_allclose(parts[0].sketch_basis, whole[0].sketch_basis, atol=1e-5)


def test_as_many_rows_as_can_share_a_prompt_stay_together():
    sizes = [harvesting.bundle_size(tiny_run({"learner.microbatches": parts})) for parts in (1, 2, 8, 16)]
    assert sizes == [4, 4, 2, 1]  # of 16 rows in groups of 4


def test_a_pass_over_the_batch_holds_a_microbatch_at_a_time(monkeypatch):
    run, seen, scores_of = tiny_run({"learner.microbatches": 8}), [], harvesting.scores_of

    def watched(run, policy, params, rollouts, **options):
        seen.append(rollouts.num_rollouts)
        return scores_of(run, policy, params, rollouts, **options)

    monkeypatch.setattr(harvesting, "scores_of", watched)
    policy = setup.policy_and_params(run.policy)[0]
    scores, _ = jax.eval_shape(lambda *of: harvesting.harvest(run, policy, *of), initial_state().params, rollouts())
    assert scores.log_probs.shape == (16, 4)
    assert set(seen) == {2}


@pytest.mark.parametrize("microbatches", [1, 2])
def test_ratios_of_the_first_update_are_one(microbatches):
    metrics = run_step({"learner.microbatches": microbatches})[1]
    assert metrics["ratio_max"] == pytest.approx(1, abs=0 if microbatches == 1 else 1e-6)
    assert metrics["ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert metrics["clip_fraction_low"] == metrics["clip_fraction_high"] == 0
    assert metrics["approx_kl"] <= 1e-10
    assert 0 < metrics["sampler_gap_max"] <= 1e-4
    assert metrics["sampler_gap"] <= metrics["sampler_gap_max"]


def test_the_steps_accuracy_is_of_the_runs_threshold():
    batch = rollouts()
    half = batch.replace(rewards=edited(batch.rewards, 0, 0.5))
    metrics = run_step(SETTINGS[GRPO], batch=half)[1]
    assert metrics["accuracy"] == np.mean(np.asarray(half.rewards) >= 0.5)


def reference_batch(batch):
    """Prompt and completion tokens of every row that may carry a gradient, None for the others."""
    keep = np.asarray(batch.valid & batch.rewarded)
    rows = []
    for row in range(batch.num_rollouts):
        prompt = np.asarray(batch.prompts)[row][np.asarray(batch.prompt_mask)[row]]
        completion = np.asarray(batch.completions)[row][np.asarray(batch.completion_mask)[row]]
        rows.append((prompt, completion) if keep[row] else None)
    return rows


def reference_scores(params, run, batch):
    """Log-probs, entropy (N, T), hidden (N, T, D) in float64, zeros where masked."""
    n, t = batch.completions.shape
    log_probs, entropy, hidden = np.zeros((n, t)), np.zeros((n, t)), np.zeros((n, t, run.policy.d_model))
    head = reference.head(params, run.policy)
    for row, tokens in enumerate(reference_batch(batch)):
        if tokens is None:
            continue
        length = len(tokens[1])
        hidden[row, :length] = reference.completion_hidden(params, run.policy, *tokens)
        log_probs[row, :length], entropy[row, :length], _ = vocab.token_statistics(
            hidden[row, :length], head, tokens[1], run.sampling.temperature
        )
    return log_probs, entropy, hidden


def missing_grade():
    """A batch in which one grade is missing."""
    batch = rollouts()
    return batch.replace(rewarded=edited(batch.rewarded, 5, False), rewards=edited(batch.rewards, 5, np.nan))


@pytest.mark.parametrize("enabled", [True, False], ids=["salt", "grpo"])
def test_a_whole_step_equals_a_float64_loop(enabled):
    settings = {} if enabled else SETTINGS[GRPO]
    run, batch = tiny_run(settings), missing_grade()
    params = jax.tree.map(np.float64, initial_state().params)
    state, metrics = run_step(settings, batch=batch)

    mask = np.asarray(batch.loss_mask)
    old, entropy, hidden = reference_scores(params, run, batch)
    a = objective_reference.group_advantages(
        np.asarray(batch.rewards).reshape(4, 4), rewarded=np.asarray(batch.rewarded).reshape(4, 4)
    ).reshape(-1)
    if enabled:
        graded = np.flatnonzero(batch.rewarded)
        features = geometry_reference.features(
            hidden, reference.head(params, run.policy), np.asarray(batch.completions), mask,
            temperature=run.sampling.temperature,
        ).reshape(16, -1)  # fmt: skip
        expected = salt_reference.reweight(features[graded], a[graded])
        assert expected["condition"] < 50  # the projector is well defined
        assert 0 < expected["alpha"] < 1
        assert metrics["salt/k"] == expected["k"]
        for name in ("alpha", "participation_ratio", "n_eff"):
            np.testing.assert_allclose(metrics[f"salt/{name}"], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
        a[graded] = expected["advantages"]

    def loss(params):
        log_probs, _, _ = reference_scores(params, run, batch)
        total, denominator, _ = objective_reference.policy_loss(
            log_probs, old, a, mask, aggregation=run.objective.aggregation
        )
        return total / denominator

    np.testing.assert_allclose(metrics["loss"], loss(params), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["entropy"], entropy.sum() / mask.sum(), rtol=1e-5)
    graded_rewards = np.delete(np.array(setup.REWARDS[:4], float).reshape(-1), 5)
    np.testing.assert_allclose(metrics["reward"], graded_rewards.mean(), rtol=1e-6)
    assert metrics["missing_rewards"] == 1
    # minus the gradient, along random directions, is what the parameters moved by
    move, rng, step = moved(state), np.random.default_rng(0), 1e-5
    for _ in range(3):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
        ahead, behind = (
            loss(jax.tree.map(lambda x, d, s=sign: x + s * step * d, params, direction)) for sign in (1, -1)
        )
        slope = sum(np.sum(m * d) for m, d in zip(jax.tree.leaves(move), jax.tree.leaves(direction), strict=True))
        np.testing.assert_allclose(slope, -(ahead - behind) / (2 * step), rtol=1e-3, atol=1e-4 * largest(move))


def test_minibatches_and_epochs_equal_one_update_after_another():
    """By hand: old log-probs of the start, one gradient after another; the plain forward and jax.grad."""
    learner = {"learner.minibatches": 2, "learner.epochs": 2, "learner.microbatches": 2}
    settings = OFF | learner | {"objective.kl_coef": 0.1}
    run, batch, start = tiny_run(settings), rollouts(), initial_state(True)
    model = setup.policy_and_params(run.policy)[0]
    a = objective_reference.group_advantages(np.asarray(batch.rewards).reshape(4, 4)).reshape(-1)

    def log_probs(params, part):
        mask = jnp.concatenate([part.prompt_mask, jnp.ones(part.completions.shape, bool)], axis=1)
        logits = setup.nnx.merge(model, params)(part.tokens, mask)[:, 2:-1] / run.sampling.temperature
        return jnp.take_along_axis(jax.nn.log_softmax(logits), part.completions[:, :, None], axis=2)[:, :, 0]

    def loss(params, part, old, ref, a):
        total, denominator, metrics = policy_objective(
            log_probs(params, part), old, a, part.loss_mask, run.objective, ref_log_probs=ref
        )
        return total / denominator, metrics.maxima["ratio_max"]

    minibatches = np.asarray(step_lib.split_minibatches(jnp.arange(16), run))
    whole_groups = [[sorted({row // 4 for row in rows.tolist()}), len(rows)] for rows in minibatches]
    assert sorted(group for groups, _ in whole_groups for group in groups) == [0, 1, 2, 3]
    assert [size for _, size in whole_groups] == [8, 8]

    before = setup.compiled(log_probs)
    old, ref = (np.asarray(before(params, batch)) for params in (start.params, start.ref_params))
    gradient_of, expected, ratios = setup.compiled(jax.grad(loss, has_aux=True)), start.params, []
    for rows in [*minibatches, *minibatches]:
        gradient, ratio = gradient_of(
            expected, setup.take_rows(batch, rows), old[rows], ref[rows], a[rows].astype(np.float32)
        )
        expected = jax.tree.map(lambda p, g: np.asarray(p) - np.asarray(g), expected, gradient)
        ratios.append(float(ratio))
    state, metrics = run_step(settings)
    assert largest_difference(state.params, expected) <= 1e-5
    assert largest_difference(state.params, start.params) > 0.01
    assert metrics["ratio_max"] > 1.01
    np.testing.assert_allclose(metrics["ratio_max"], max(ratios), rtol=1e-5)
    assert (int(state.step), int(state.consumed_prompts)) == (1, 4)


def test_reference_policy_is_what_kl_is_taken_to():
    run, batch, start = tiny_run(KEEPING), rollouts(), initial_state(True)
    metrics = run_step(KEEPING)[1]
    new, ref = (
        reference_scores(jax.tree.map(np.float64, params), run, batch)[0] for params in (start.params, start.ref_params)
    )
    mask = np.asarray(batch.loss_mask)
    expected = np.mean([objective_reference.kl("k3", p, q) for p, q in zip(new[mask], ref[mask], strict=True)])
    np.testing.assert_allclose(metrics["kl_ref"], expected, rtol=1e-4)


def test_the_order_of_groups_and_of_rollouts_in_them_does_not_matter():
    rng = np.random.default_rng(0)
    by_group = [group * 4 + rng.permutation(4) for group in (2, 0, 3, 1)]
    permuted = setup.take_rows(rollouts(), np.concatenate(by_group))
    for settings in ({}, SETTINGS[GRPO]):
        assert_same_step(run_step(settings, batch=permuted), run_step(settings))


def with_garbage(batch, rows, value):
    """Everything in the given rows replaced; not their `valid` and `rewarded`."""
    rows = np.asarray(rows)
    return batch.replace(
        tokens=edited(batch.tokens, rows, value % setup.VOCAB),
        completion_mask=edited(batch.completion_mask, rows, value % 2 == 0),
        sampler_log_probs=edited(batch.sampler_log_probs, rows, np.nan if value % 2 else 1e30),
        rewards=edited(batch.rewards, rows, np.nan if value % 2 else 1e30),
        truncated=edited(batch.truncated, rows, value % 2 == 1),
    )


@pytest.mark.parametrize(
    "settings",
    [{}, pytest.param({"learner.microbatches": 8}, marks=pytest.mark.slow)], ids=["whole", "microbatches"],
)
def test_content_of_padding_rows_does_not_matter(settings):
    batch = rollouts()
    padded = batch.replace(valid=edited(batch.valid, np.s_[12:], False))
    results = [run_step(settings, batch=with_garbage(padded, range(12, 16), value)) for value in (3, 8)]
    assert same_bits(results[0][0], results[1][0])
    assert same_bits(results[0][1], results[1][1])
    assert all(np.isfinite(value).all() for value in results[0][1].values())


def with_short_rows(batch):
    """Without the longest prompts and completions: prompts of 2 tokens, completions of 3 at most."""
    batch = batch.replace(
        prompt_mask=edited(batch.prompt_mask, np.s_[:, 0], False),
        completion_mask=edited(batch.completion_mask, np.s_[:, 3], False),
    )
    assert int(batch.completion_mask[:12].sum(axis=1).max()) == 3
    return batch


def test_padding_a_batch_with_rows_and_columns_changes_nothing():
    batch = with_short_rows(rollouts())
    padded = with_garbage(batch.replace(valid=edited(batch.valid, np.s_[12:], False)), range(12, 16), 8)
    small = setup.take_rows(batch, range(12)).trimmed(2, 3)
    assert_same_step(run_step(batch=padded), run_step({"sampling.prompts_per_step": 3}, batch=small))


def test_content_of_rollouts_without_a_grade_does_not_matter():
    missing = missing_grade()
    results = [
        run_step(batch=missing.replace(rewards=edited(missing.rewards, 5, value))) for value in (np.nan, 0.0, 1e30)
    ]
    for state, metrics in results[1:]:
        assert same_bits(state, results[0][0])
        assert same_bits(metrics, results[0][1])
    # and nothing of its tokens reaches the update: only what the batch's own shape metrics say may differ
    tokens = edited(missing.tokens, np.s_[5, 3:], 7)
    assert same_bits(run_step(batch=missing.replace(tokens=tokens))[0], results[0][0])
    assert largest_difference(results[0][0].params, run_step()[0].params) > 1e-3


@pytest.mark.parametrize("name", ["salt", GRPO, PERMUTED])
@pytest.mark.parametrize("microbatches", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_unanimous_groups_give_exactly_no_gradient(name, microbatches):
    batch = rollouts()
    for rewards in (np.repeat(np.float32([1.0, 0.1, 0.0, 0.7]), 4), np.full(16, 0.1, np.float32)):
        state, metrics = run_step(
            SETTINGS[name] | {"learner.microbatches": microbatches}, batch=batch.replace(rewards=rewards)
        )
        assert metrics["grad_norm"] == metrics["loss"] == metrics["groups_with_signal"] == 0
        assert largest(moved(state)) == 0
        assert all(np.isfinite(value).all() for value in metrics.values())


@pytest.mark.parametrize("name", ["salt", GRPO])
def test_a_batch_without_any_grade_gives_no_gradient(name):
    batch = rollouts()
    state, metrics = run_step(SETTINGS[name], batch=batch.replace(rewarded=np.zeros(16, bool)))
    assert largest(moved(state)) == 0
    assert metrics["missing_rewards"] == 16
    assert all(np.isfinite(value).all() for value in metrics.values())


# dr_grpo divides by the length limit of the configuration, not by the batch's
@pytest.mark.slow
@pytest.mark.parametrize("name", ["salt", PER_ROLLOUT, "salt in microbatches"])
def test_trimming_columns_of_padding_changes_nothing(name):
    settings = SETTINGS.get(name, {"learner.microbatches": 2})
    run, batch = tiny_run(settings), with_short_rows(rollouts())
    start = initial_state(run.objective.kl_coef > 0)
    whole, trimmed = (run_step(settings, state=start, batch=b) for b in (batch, batch.trimmed(2, 3)))
    assert trimmed[1].keys() == whole[1].keys()
    assert_same_step(trimmed, whole)


def test_reward_metrics_equal_loops():
    batch = rollouts()
    batch = batch.replace(
        valid=edited(batch.valid, np.s_[12:], False), rewarded=edited(batch.rewarded, 0, False),
        truncated=np.arange(16) % 3 == 0,
    )  # fmt: skip
    found = setup.call(lambda batch: reward_metrics(batch, 4, 1.0), batch)
    rewards, lengths = np.asarray(batch.rewards), np.asarray(batch.completion_mask).sum(axis=1)
    graded = [row for row in range(12) if row != 0]
    assert found["reward"] == pytest.approx(sum(rewards[row] for row in graded) / 11)
    assert found["accuracy"] == pytest.approx(sum(rewards[row] > 0 for row in graded) / 11)
    graded_groups = [{float(rewards[row]) for row in graded if row // 4 == group} for group in range(3)]
    assert found["groups_with_signal"] == pytest.approx(sum(len(values) > 1 for values in graded_groups) / 3)
    assert 0 < found["groups_with_signal"] < 1
    assert found["completion_length"] == pytest.approx(lengths[:12].mean())
    assert found["truncated"] == pytest.approx(4 / 12)
    assert found["missing_rewards"] == 1


def test_measuring_with_salt_off_sees_what_salt_sees_and_changes_nothing():
    measured = run_step(SETTINGS[GRPO], measure=True)
    seen, unmeasured = run_step()[1], run_step(SETTINGS[GRPO])
    assert_same_step(measured, unmeasured)
    names = {name for name in seen if name.startswith("geometry/")}
    assert len(names) > 5
    of_geometry = lambda metrics: {name for name in metrics if "/" in name and not name.startswith("guards/")}
    assert names == of_geometry(measured[1])
    assert not of_geometry(unmeasured[1])
    for name in names:
        np.testing.assert_allclose(measured[1][name], seen[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_without_jit():
    """SALT off: the thousand small operations of the geometry take long one by one."""
    settings = SETTINGS[GRPO]
    new, metrics = setup.bound_step(tiny_run(settings))(initial_state(), rollouts())
    assert_same_step((new, {name: np.asarray(value) for name, value in metrics.items()}), run_step(settings))


def test_entropy_range_follows_the_batches_and_sets_alpha():
    run, batch = tiny_run(KEEPING), rollouts()
    start = initial_state(True).replace(sketch_basis=first_basis(run))
    first, metrics = run_step(KEEPING)
    _, entropy, _ = reference_scores(jax.tree.map(np.float64, start.params), run, batch)
    now = entropy.sum() / np.asarray(batch.loss_mask).sum()
    np.testing.assert_allclose(first.entropy_range, [now, now], rtol=1e-5)
    assert metrics["salt/alpha"] == 0  # the range is a point: 0/0 := 0
    start = start.replace(entropy_range=np.array([now - 0.1, now + 0.3], np.float32))
    second, metrics = run_step(KEEPING, state=start)
    assert same_bits(second.entropy_range, start.entropy_range)
    np.testing.assert_allclose(metrics["salt/alpha"], 0.25, rtol=1e-3)


def test_random_variants_draw_anew_each_step_and_the_same_in_the_same_step():
    settings = SETTINGS[PERMUTED]
    start = initial_state()
    assert same_bits(run_step(settings), run_step(settings))
    later = run_step(settings, state=start.replace(step=start.step + 1))[0]
    assert largest_difference(later.params, run_step(settings)[0].params) > 1e-3


@pytest.mark.slow
def test_a_sketch_that_projects_nothing_is_the_exact_step():
    covering = {"salt.feature": "lm_head_sketch", "salt.rank_vocab": 100, "salt.rank_hidden": 100}
    assert_same_step(run_step(covering), run_step())
    assert run_step(covering)[0].sketch_basis is None


def test_the_basis_of_a_sketch_turns_to_the_hidden_states_and_its_signs_are_new_each_step():
    start = initial_state(True).replace(sketch_basis=first_basis(tiny_run(KEEPING)))
    first = run_step(KEEPING, state=start)
    assert same_bits(first, run_step(KEEPING, state=start))
    assert largest_difference(first[0].sketch_basis, start.sketch_basis) > 0.1
    basis = np.asarray(first[0].sketch_basis, float)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-5)
    later = run_step(KEEPING, state=start.replace(step=start.step + 1))
    assert abs(later[1]["salt/participation_ratio"] - first[1]["salt/participation_ratio"]) > 1e-4
    bits = [jax.random.key_data(f(start)) for f in (step_lib.salt_key, step_lib.sampling_key, step_lib.sketch_key)]
    assert len({tuple(np.asarray(b).tolist()) for b in bits}) == 3


def program_of_many_tokens(chunk, settings, measure=False):
    """The step's program with a vocabulary of 2,000 in parts of `chunk`; the elements of one part's logits."""
    run = tiny_run(settings | {"learner.vocab_chunk": chunk, "salt.vocab_chunk": chunk})
    run = dataclasses.replace(run, policy=dataclasses.replace(run.policy, vocab_size=2000))
    state = jax.eval_shape(
        lambda params: setup.state_lib.init_state(params, setup.OPTIMIZER, jax.random.key(0), keep_reference=True),
        setup.policy_and_params(run.policy)[1],
    )
    program = jax.make_jaxpr(jax.jit(setup.bound_step(run, measure)))(state, rollouts())
    return program, 16 * 4 * 2000 // run.learner.microbatches


ACCUMULATED = {"learner.microbatches": 2, "objective.kl_coef": 0.1}


@pytest.mark.parametrize(
    ("settings", "measure"),
    [({}, False), (ACCUMULATED, False), (OFF, True), ({"salt.feature": "taken_token"}, False),
     ({"salt.feature": "lm_head_sketch", "salt.rank_vocab": 40, "learner.microbatches": 2}, False),
     ({"salt.feature": "per_rollout", "salt.subset_microbatch": 1}, False)],
    ids=["salt", "accumulated", "measured", "taken_token", "sketch", "per_rollout"],
)  # fmt: skip
def test_no_array_of_all_logits(settings, measure):
    program, one_part = program_of_many_tokens(50, settings, measure)
    assert largest_array(program) < one_part / 2
    assert any(shape[-1:] == (50,) for shape in shapes(program))


@pytest.mark.parametrize("settings", [OFF, OFF | ACCUMULATED], ids=["at once", "accumulated"])
def test_an_array_of_all_logits_would_be_found(settings):
    program, one_part = program_of_many_tokens(2000, settings)
    assert largest_array(program) >= one_part


def jitted_step():
    """The step as the trainer has it and as users compile it, on one device; and states of its own."""
    run = tiny_run()
    policy = setup.policy_and_params(run.policy)[0]
    fresh = lambda: jax.device_put(jax.tree.map(jnp.copy, initial_state()))
    step = step_lib.jit_train_step(run, policy, setup.OPTIMIZER, make_mesh(), fresh())
    return step.lower(fresh(), rollouts()).compile(compiler_options=setup.DEFAULT_COMPILE), fresh


def test_the_step_of_users_is_the_same_donates_its_state_moves_nothing_and_repeats_itself(no_transfers):
    step, fresh = jitted_step()
    batch, results = rollouts(), []
    for _ in range(2):
        state = fresh()
        with no_transfers():
            new, metrics = step(state, batch)
            jax.block_until_ready(new)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
        results.append((jax.tree.map(np.asarray, new), jax.tree.map(np.asarray, metrics)))
    assert same_bits(results[0], results[1])
    assert_same_step(results[0], run_step())
    with no_transfers():  # the next step takes what this one gave
        after, _ = step(new, batch)
    assert (int(after.step), int(after.consumed_prompts)) == (2, 8)
