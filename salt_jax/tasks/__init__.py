"""Tasks: prompts with verifiable answers, the tokenizers that write them and the verifiers that grade them."""

from collections.abc import Callable

from salt_jax.graders import ErrorReport, Grades, Verifier, exact_match, grade_all
from salt_jax.tasks.arithmetic import make_arithmetic
from salt_jax.tasks.batches import prompt_batches, solution_batches
from salt_jax.tasks.factories import SINGLE_TASKS
from salt_jax.tasks.lengths import ON_LONG, check_prompt_lengths, check_solution_lengths, fitting
from salt_jax.tasks.mixture import make_mixture
from salt_jax.tasks.task import Example, Source, Task
from salt_jax.tasks.tokenizers import CharTokenizer, Prompt, Tokenizer

# Each takes data_dir first, `tokenizer` (the model's, or None) and the task's own settings as keywords.
TASKS: dict[str, Callable[..., Task]] = {**SINGLE_TASKS, "mixture": make_mixture}

__all__ = [
    "ON_LONG",
    "SINGLE_TASKS",
    "TASKS",
    "CharTokenizer",
    "ErrorReport",
    "Example",
    "Grades",
    "Prompt",
    "Source",
    "Task",
    "Tokenizer",
    "Verifier",
    "check_prompt_lengths",
    "check_solution_lengths",
    "exact_match",
    "fitting",
    "grade_all",
    "make_arithmetic",
    "prompt_batches",
    "solution_batches",
]
