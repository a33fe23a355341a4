"""What counts as a success: one threshold, asked in every place that tells right rollouts from wrong ones.

Four groups of rewards 0.01 (what many generators of Reasoning Gym give for a wrong answer), 0.35 and 1. As a float32,
0.35 is less than the double: it reaches itself all the same.
"""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from salt_jax import objective, salt
from salt_jax.collect import COLLECTORS, gvm
from salt_jax.collect.turn import Turn
from salt_jax.evaluation.evaluate import ProblemResult
from salt_jax.graders import Verdict
from salt_jax.learner.step_metrics import reward_metrics
from salt_jax.learner.weighing import Batch, signals_of, with_advantages
from salt_jax.objective.hpt import success_rate
from salt_jax.objective.signals import example_rollouts
from salt_jax.run.judging import score
from tests import training_setup as setup
from tests.collect.collect_setup import Script, collection, engine, examples, state_at
from tests.collect.test_collect import way

OUTCOMES = {"1": 1.0, "2": 0.01, "4": 0.35}  # first letter of a completion -> reward
STREAMS = ("2412", "2222", "4444", "1212")  # of four problems
RIGHT = {1.0: [1, 0, 0, 2], 0.35: [2, 0, 4, 2]}  # task.correct_from -> successes of each
OPTIONS = {
    "reinforce_ada": {"max_rounds": 1}, "reinforce_ada_est": {"distinct_prompts": 4}, "vade": {},
    "dynamic": {"max_batches": 1, "on_exhausted": "train"}, "hpt": {}, "gvm": {"distinct_prompts": 4, "pilots": 4},
}  # fmt: skip


class Watched(Turn):
    """Keeps what would be put on the mesh."""

    def finish(self, groups, extra=None):
        places = [int(name.removeprefix("train/")) - 1 for name in groups.ids]
        return {name: dict(zip(places, values, strict=True)) for name, values in (extra or {}).items()}


@pytest.mark.parametrize("correct_from", RIGHT)
@pytest.mark.parametrize("method", OPTIONS)
def test_every_way_to_collect(method, correct_from, monkeypatch):
    monkeypatch.setattr(gvm, "gradient_norms", lambda turn, pilots: np.ones(pilots.rewards.shape))
    script = Script({str(i + 1): itertools.cycle(stream) for i, stream in enumerate(STREAMS)})
    made = engine(
        way(method, **OPTIONS[method]) | {"task.correct_from": correct_from}, problems=examples(4), script=script,
        verifier=lambda completion, reference: Verdict(OUTCOMES[completion[:1]]),
    )
    turn, before = Watched(made, state_at(), 1), collection(made)
    extra, memory = COLLECTORS[method].collect(turn, before.data, before.memory)
    seen = {name.removeprefix("collection/"): value for name, value in turn.metrics.items()}
    right = np.array(RIGHT[correct_from])
    of_each, mean = dict(enumerate(right / 4)), right.mean() / 4
    solved = np.mean(right == 4)
    found, expected = {
        "reinforce_ada": lambda: ((extra["baseline"], seen["unresolved"]), (of_each, np.mean(right != 2))),
        "reinforce_ada_est": lambda: ((memory["positive"].tolist(), seen["success"]), (right.tolist(), mean)),
        "vade": lambda: (memory["alpha"].tolist(), right.tolist()),
        "dynamic": lambda: ((seen["all_right"], seen["all_wrong"]), (solved, 0.5 - solved)),
        "hpt": lambda: (
            ({place: row[0] for place, row in extra["demonstration"].items()}, seen["success"]),
            (dict(enumerate(right == 0)), mean),
        ),
        "gvm": lambda: (seen["pilot_success"], mean),
    }[method]()
    assert found == expected


def test_every_score_of_given_rewards():
    rewards = np.array([[OUTCOMES[letter] for letter in stream] for stream in STREAMS], np.float32)
    rollouts = example_rollouts(rewards.reshape(-1))
    runs = [setup.tiny_run({"task.correct_from": x, "objective.overlong_buffer": 4}) for x in RIGHT]
    scaled = salt.SaltConfig(variant="scaled", alpha_min=1.0)

    def scores(rollouts):
        for run in runs:
            # of the task's rewards, of which the overlong penalty takes a quarter before advantages are made
            rates = with_advantages(setup.initial_state(), Batch(rollouts), run, None)[0].rates
            yield (
                reward_metrics(rollouts, 4, run.correct_from)["accuracy"],
                success_rate(rewards, None, run.correct_from), rates,
                salt.reweight(jnp.eye(16), jnp.ones(16), scaled, success_rate=rates).advantages,
            )  # fmt: skip

    for run, found in zip(runs, setup.call(lambda rollouts: list(scores(rollouts)), rollouts), strict=True):
        of_each = np.array(RIGHT[run.correct_from]) / 4
        results = [
            ProblemResult(str(b), "", ("",) * 4, tuple(row), (True,) * 4, (False,) * 4, (1,) * 4, (None,) * 4)
            for b, row in enumerate(rewards.tolist())
        ]
        assert score(run, results).accuracy == of_each.mean()
        expected = of_each.mean(), of_each, of_each.repeat(4), 1 - of_each.repeat(4)
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6)


def test_darling_partitions_by_the_tasks_reward():
    """All in classes of their own: a success is as far from the others as can be, a failure has the least diversity."""
    run = setup.tiny_run({
        "task.correct_from": 0.35, "objective.overlong_buffer": 4, "objective.estimator": "darling",
        "objective.darling_partition_correct": True, "objective.darling_form": "add",
        "objective.darling_lambda_reward": 0.0, "collection.clusters": "text",
    })  # fmt: skip
    rollouts = example_rollouts([0.35, 0.01, 1.0, 1.0], clusters=[0, 1, 2, 3])

    def advantages(rollouts):
        signals = signals_of(run, setup.initial_state(), Batch(rollouts), None, setup.initial_state().key)
        return objective.estimate(signals, 4, run.objective).advantages

    np.testing.assert_allclose(setup.call(advantages, rollouts), [0.25, -0.75, 0.25, 0.25], rtol=1e-6)
