"""From samples to the pytree that the update gets: rows of a group repeat its prompt, padding columns go."""

import jax.numpy as jnp
import numpy as np

from salt_jax.collect import generation
from salt_jax.distributed.sharding import make_mesh
from salt_jax.policy.sampler import Samples
from tests.training_setup import tiny_run

LENGTHS = np.array([1, 2, 1, 1])
MASK = np.array([[False, False, True], [False, True, True]])  # of 2 prompts of a limit of 3 tokens


def test_the_least_buckets_that_hold_the_longest_rows():
    for prompt_buckets, length_buckets, expected in ((1, 1, (3, 4)), (3, 4, (2, 2)), (1, 2, (3, 2)), (3, 1, (2, 4))):
        run = tiny_run({"learner.prompt_buckets": prompt_buckets, "learner.length_buckets": length_buckets})
        assert generation.batch_lengths(run, MASK, LENGTHS) == expected
    assert generation.batch_lengths(run, np.zeros((2, 3), bool), LENGTHS)[0] == 1  # rows that only pad the batch


def test_assembled_batches_are_whole_or_trimmed():
    tokens = jnp.arange(16).reshape(4, 4)
    samples = Samples(tokens=tokens, lengths=jnp.asarray(LENGTHS), log_probs=-1.0 * tokens, truncated=LENGTHS > 1)
    prompts = np.array([[7, 8, 9], [4, 5, 6]])
    assemble = generation.jit_assemble(make_mesh(), 2)
    graded = np.arange(4, dtype=np.float32), np.array([True, False, True, True])
    whole = assemble(prompts, MASK, samples, *graded)
    assert whole.prompts.tolist() == [[7, 8, 9]] * 2 + [[4, 5, 6]] * 2
    assert whole.completions.tolist() == tokens.tolist()
    assert whole.completion_mask.sum(axis=1).tolist() == LENGTHS.tolist()
    trimmed = assemble(prompts, MASK, samples, *graded, (2, 3))
    assert trimmed.tokens.tolist() == whole.tokens[:, 1:6].tolist()
    assert trimmed.rewards.tolist() == whole.rewards.tolist()
    assert trimmed.rewarded.tolist() == graded[1].tolist()
