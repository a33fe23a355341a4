"""Held-out accuracy: filler rows and failed graders are not counted."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from salt_jax.evaluate import decode_completions, evaluate
from salt_jax.policy.sampler import Samples
from salt_jax.tasks import CharTokenizer, Example, Task, exact_match, prompt_batches

TOKENIZER = CharTokenizer("0123456789+=x")
EXAMPLES = [Example(f"{i}+1=", str(i + 1), str(i + 1), f"test/{i}") for i in range(5)]


def answer(texts: list[str], length: int = 4) -> Samples:
    """What a sampler would return for these completions; a text without room for the end token is truncated."""
    tokens, lengths = np.zeros((len(texts), length), np.int32), []
    for row, text in enumerate(texts):
        ids = [*TOKENIZER.encode(text), TOKENIZER.eos_id][:length]
        tokens[row, : len(ids)] = ids
        lengths.append(len(ids))
    truncated = jnp.array([len(text) >= length for text in texts])
    return Samples(jnp.array(tokens), jnp.array(lengths), jnp.zeros((len(texts), length)), truncated)


def task(verifier=exact_match) -> Task:
    return Task("sums", TOKENIZER, {"test": EXAMPLES}, verifier)


def batches(size: int):
    return prompt_batches(
        EXAMPLES, TOKENIZER, batch_size=size, max_prompt_length=4, seed=0, shuffle=False, repeat=False
    )


def replies(per_problem: dict[str, str]):
    def generate(prompts, mask):
        texts = [TOKENIZER.decode(row[m].tolist()) for row, m in zip(prompts, mask, strict=True)]
        return answer([per_problem[text] for text in texts])

    return generate


def test_decoding_uses_lengths_not_the_pad_id():
    samples = answer(["12", ""])
    assert decode_completions(task(), samples) == ["12", ""]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_accuracy_does_not_depend_on_the_batch_size(size):
    per_problem = {"0+1=": "1", "1+1=": "2", "2+1=": "9", "3+1=": "4444", "4+1=": "5"}
    result = evaluate(replies(per_problem), batches(size), task())
    assert result == (3 / 5, 5, 0, 1 / 5)


def test_a_failed_grader_is_missing_not_wrong():
    def verifier(completion: str, reference: str) -> float:
        if completion == "x":
            raise RuntimeError("unreadable")
        return exact_match(completion, reference)

    per_problem = {"0+1=": "1", "1+1=": "x", "2+1=": "9", "3+1=": "4", "4+1=": "x"}
    result = evaluate(replies(per_problem), batches(2), task(verifier))
    assert result == (2 / 3, 5, 2, 0.0)


def test_nothing_to_evaluate():
    with pytest.raises(ValueError, match="empty"):
        evaluate(replies({}), [], task())
