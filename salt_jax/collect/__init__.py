"""How the rollouts of a step come to be: one file a way, looked up in ``COLLECTORS`` by config.collection.method.

===================  ================================================================  ==========  ==================
method               what a step's B slots of G rollouts are                           estimator   saved beside data
===================  ================================================================  ==========  ==================
plain                the next B prompts, G rollouts each                               any
dynamic              the first B groups with signal out of several such batches        any
pods                 the next B prompts, the G rollouts of the most varied rewards     any
reinforce_ada        the next B prompts, G rollouts out of each one's pool             given
reinforce_ada_est    fewer prompts, slots by their estimated success rates             given       counts
vade                 the B prompts that promise to teach most                          any         Beta posteriors
gvm                  fewer prompts, slots by the variance of their gradients           raft
aepo                 as plain, some rows from a second sampling at another temperature any         entropy
hpt                  as plain, a demonstration in place of each group that fails       any
===================  ================================================================  ==========  ==================

A way is a pure function of the data iterator, its own memory and the keys of the step; a new one is a file and a line
here. Shapes are static: every generation has one of a few sizes, the batch that comes out always (B · G) rows, and all
rows of a slot have one prompt.

Random numbers: round r of a step's generations draws from fold_in(fold_in(step key, 0), r), 'plain' from
fold_in(step key, 0) itself; what chooses prompts draws from fold_in(step key, 5).
"""

from salt_jax.collect import ada, ada_est, aepo, dynamic, gvm, hpt, plain, pods, vade
from salt_jax.collect.collection import Collection
from salt_jax.collect.turn import Collected, CollectionError, Engine, Method, Turn

__all__ = ["COLLECTORS", "Collected", "Collection", "CollectionError", "Engine", "Method", "Turn", "make_collection"]

COLLECTORS: dict[str, Method] = {
    "plain": Method(plain.collect),
    "dynamic": Method(dynamic.collect, options=("max_batches", "on_exhausted")),
    "pods": Method(pods.collect, options=("sampled_rollouts",)),
    "reinforce_ada": Method(
        ada.collect, estimators=("given_baseline",),
        options=("round_rollouts", "max_rounds", "exit_rule", "positives", "pool_weight"),
    ),
    "reinforce_ada_est": Method(
        ada_est.collect, start=ada_est.start, shared=True, estimators=("given_baseline",),
        options=(
            "distinct_prompts", "min_slots", "max_slots", "count_decay", "prior_positive", "prior_negative", "rate_eps",
        ),
    ),
    "vade": Method(vade.collect, start=vade.start, data="source", options=("decay_selected", "decay_others")),
    "gvm": Method(
        gvm.collect, shared=True, estimators=("raft",),
        options=("distinct_prompts", "min_slots", "max_slots", "pilots", "gvm_alpha", "gvm_beta"),
    ),
    "aepo": Method(
        aepo.collect, start=aepo.start,
        options=("entropy_target", "temperature_high", "temperature_low", "max_injected", "inject_above"),
    ),
    "hpt": Method(hpt.collect, data="solutions", options=("hpt_gate",)),
}  # fmt: skip


def make_collection(engine: Engine) -> Collection:
    """The collection that a run's configuration names."""
    return Collection(engine, COLLECTORS[engine.run.collection.method])
