"""A task whose completions are right or wrong as a script says; engines that sample from it, or from a policy."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from salt_jax.collect import COLLECTORS, Collection, Engine
from salt_jax.distributed.sharding import make_mesh
from salt_jax.graders import Verdict
from salt_jax.policy.sampler import Samples
from salt_jax.rollout import RolloutBatch
from salt_jax.tasks import CharTokenizer, Example, Task
from tests.training_setup import initial_state, policy_and_params, tiny_run

TOKENIZER = CharTokenizer("12345678\n")  # 12 ids, as training_setup's policies have
RIGHT, WRONG, LOST = "1", "2", "3"


def grade(completion: str, reference: str) -> Verdict:
    """1 for what begins with '1', nothing for what begins with '3'; '4' and '5' give 0.5 and −1."""
    if completion.startswith(LOST):
        raise RuntimeError("lost")
    return Verdict({RIGHT: 1.0, "4": 0.5, "5": -1.0}.get(completion[:1], 0.0), completion[1:2] or None)


def examples(count: int = 8, solution: str = "123") -> list[Example]:
    """Problems '1', '2', … '8', '11', '12', …, in order."""
    digits = "12345678"
    names = itertools.chain(digits, (a + b for a in digits for b in digits))
    return [Example(name, name, solution, f"train/{name}") for name in itertools.islice(names, count)]


def prompt_of(tokens: Any, mask: Any) -> str:
    """The text of a left-padded prompt."""
    return TOKENIZER.decode(np.asarray(tokens)[np.asarray(mask)].tolist())


@dataclasses.dataclass
class Script:
    """A sampler that answers each prompt with the next outcomes of its stream; and what it was asked.

    Outcomes are characters, the first of a completion of 1 to 4 tokens. A rollout's log-prob is −(its number among
    the prompt's rollouts + 1) / 8.
    """

    streams: dict[str, Iterable[str]]
    calls: list[tuple[int, int, float]] = dataclasses.field(default_factory=list)
    keys: list[list[int]] = dataclasses.field(default_factory=list)
    drawn: dict[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.streams = {name: iter(stream) for name, stream in self.streams.items()}

    def sampler(self, prompts: int, rollouts: int, temperature: float) -> Callable[..., Samples]:
        def generate(params: Any, tokens: Any, mask: Any, key: Any) -> Samples:
            assert len(tokens) == prompts
            self.calls.append((prompts, rollouts, temperature))
            self.keys.append(jax.random.key_data(key).tolist())
            made = np.zeros((prompts * rollouts, 4), np.int32)
            lengths, log_probs = np.zeros(len(made), np.int32), np.zeros((len(made), 4), np.float32)
            for row in range(len(made)):
                name = prompt_of(tokens[row // rollouts], mask[row // rollouts])
                number = self.drawn[name] = self.drawn.get(name, -1) + 1
                length = 1 + number % 4
                ids = TOKENIZER.encode(next(self.streams[name]) + "678"[: length - 1])
                made[row, :length], lengths[row] = ids, length
                log_probs[row, :length] = -(number + 1) / 8
            return Samples(tokens=made, lengths=lengths, log_probs=log_probs, truncated=lengths == 4)

        return generate


def engine(
    overrides: dict[str, Any] | None = None, *, script: Script | None = None, problems: list[Example] | None = None,
    warn: Callable[[str], None] = lambda text: None, verifier: Any = grade,
) -> Engine:
    """Four prompts and four rollouts of each, unless overrides say otherwise."""
    run = tiny_run({"sampling.temperature": 1.0} | (overrides or {}))
    source = examples() if problems is None else problems
    policy, params = policy_and_params(run.policy)
    task = Task("scripted", TOKENIZER, {"train": source, "test": source}, verifier)
    made = Engine(
        run=run, task=task, source=source, policy=policy, shape=run.policy, params=params,
        mesh=make_mesh(run.mesh.data, run.mesh.fsdp, run.mesh.tensor),
        grade=task.grade, warn=warn,
    )
    if script is None:
        return made

    class Scripted(Engine):
        def sampler(self, prompts: int, rollouts: int, temperature: float | None) -> Any:
            return script.sampler(prompts, rollouts, temperature or self.run.sampling.temperature)

    return Scripted(**{field.name: getattr(made, field.name) for field in dataclasses.fields(made)})


def collection(made: Engine) -> Collection:
    """What the engine's configuration names."""
    return Collection(made, COLLECTORS[made.run.collection.method])


def state_at(step: int = 0) -> Any:
    """training_setup's state, before step + 1."""
    state = initial_state()
    return state.replace(step=state.step + step)


def prompts_of(rollouts: RolloutBatch) -> list[str]:
    """The text of each row's prompt."""
    tokens, mask = jax.device_get((rollouts.prompts, rollouts.prompt_mask))
    return [prompt_of(*row) for row in zip(tokens, mask, strict=True)]


def numbers_of(rollouts: RolloutBatch) -> list[int]:
    """Which of its prompt's rollouts each row is, from a script's log-probs."""
    return (-8 * np.asarray(rollouts.sampler_log_probs)[:, 0] - 1).round().astype(int).tolist()


def groups_of(values: Any, size: int = 4) -> list[list[Any]]:
    """N values as lists of a group each."""
    values = np.asarray(values)
    return values.reshape(-1, size, *values.shape[1:]).tolist()
