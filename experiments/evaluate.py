"""Evaluates a policy: python -m experiments.evaluate --config=FILE --workdir=OUT [--run=DIR [--checkpoint=WHICH]]
[--baseline=OTHER_OUT].

The policy is a checkpoint of --run (its newest, or WHICH: newest, best by the run's own config.checkpoint.best_by, or
a step), or the model of config.model.path; it gets config.evaluation.samples
completions a problem of the test split at config.evaluation.temperature. Writes OUT/problems.jsonl (every completion)
and OUT/evaluation.json, and prints avg@n, pass@k and maj@n; with --baseline also the paired difference to an earlier
evaluation of the same problems by the same grader, as OUT/comparison.json. Nothing is written before all problems are
done.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from experiments import cli, scores
from salt_jax.models import run_steps
from salt_jax.spec import ConfigError

RUN = cli.define_path("run", "Folder of the run whose checkpoint is evaluated.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Which checkpoint of --run: newest (the default), best or a step.")
BASELINE = cli.define_path("baseline", "Folder of an evaluation of the same problems to compare with.")


def which(run: Path | None, checkpoint: str | None) -> str | int:
    """What --checkpoint asks for.

    Raises:
      ConfigError: if it is none of what is allowed, or there is no --run.
    """
    if run is None and checkpoint is not None:
        raise ConfigError(f"--checkpoint={checkpoint} needs --run")
    try:
        return run_steps.parse_choice(checkpoint or run_steps.NEWEST)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def main() -> None:
    """Checks what can be checked, evaluates, writes and prints."""
    folder, console, config = Path(str(cli.WORKDIR.value)), Console(), cli.CONFIG.value
    run, baseline = (Path(flag.value) if flag.value else None for flag in (RUN, BASELINE))
    scores.check_folder(folder)
    if run is not None:
        scores.check_run(run)
    checkpoint = which(run, CHECKPOINT.value)
    theirs = scores.load_problems(baseline) if baseline is not None else []
    made_from: dict[str, Any] = {}

    # only now: a flag that is wrong should not wait for what sampling imports
    from salt_jax.distributed import hosts
    from salt_jax.run.judging import evaluate_run
    from salt_jax.run.setup import final_step

    began = time.perf_counter()
    warn = functools.partial(console.print, markup=False, soft_wrap=True)
    step = None if run is None else final_step(run, f"--run={run}", warn, checkpoint)

    def accept(made: Any, record: Mapping[str, Any]) -> None:
        made_from.update(record)
        for line in [] if baseline is None else scores.check_pair(baseline, made):
            warn(line)

    results = evaluate_run(config, run, console, step, accept)
    if not hosts.lead():  # of many processes, one writes
        return
    seconds = time.perf_counter() - began
    rate = sum(sum(result.lengths) for result in results) / seconds
    about = {
        "run": str(run) if run else None, "step": step, "seconds": seconds, "tokens_per_second": rate,
        **made_from, "config": config.to_dict(),
    }  # fmt: skip
    correct_from = config.task.correct_from
    parts = scores.of_parts(results, correct_from) if config.task.name == "mixture" else None
    evaluation = scores.save(folder, results, correct_from=correct_from, about=about, parts=parts)
    scores.print_evaluation(evaluation, rate, console, parts)
    if baseline is not None:
        result, line = scores.compare_with(baseline, results, theirs, correct_from=correct_from)
        scores.save_comparison(folder, baseline, result)
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"completions: {folder / scores.PROBLEMS}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(cli.run(main, resumes=False))
