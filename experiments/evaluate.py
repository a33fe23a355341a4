"""Evaluates a policy: python -m experiments.evaluate --config=FILE --workdir=OUT [--run=DIR] [--baseline=OTHER_OUT].

The policy is the newest checkpoint of --run, or the model of config.model.path; it gets config.evaluation.samples
completions a problem of the test split at config.evaluation.temperature. Writes OUT/problems.jsonl (every completion)
and OUT/evaluation.json, and prints avg@n, pass@k and maj@n; with --baseline also the paired difference to an earlier
evaluation of the same problems, as OUT/comparison.json. Nothing is written before all problems are done.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from absl import flags
from rich.console import Console

from experiments import cli, scores

RUN = flags.DEFINE_string("run", None, "Folder of the run whose newest checkpoint is evaluated.")
BASELINE = flags.DEFINE_string("baseline", None, "Folder of an evaluation of the same problems to compare with.")


def main() -> None:
    """Checks what can be checked, evaluates, writes and prints."""
    folder, console, config = Path(str(cli.WORKDIR.value)), Console(), cli.CONFIG.value
    run, baseline = (Path(flag.value) if flag.value else None for flag in (RUN, BASELINE))
    scores.check_folder(folder)
    if run is not None:
        scores.check_run(run)
    theirs = scores.load_problems(baseline) if baseline is not None else []

    # only now: a flag that is wrong should not wait for what sampling imports
    from salt_jax.training.judging import evaluate_run

    began = time.perf_counter()
    results = evaluate_run(config, run, console)
    seconds = time.perf_counter() - began
    rate = sum(sum(result.lengths) for result in results) / seconds
    about = {
        "run": str(run) if run else None, "seconds": seconds, "tokens_per_second": rate, "config": config.to_dict()
    }  # fmt: skip
    correct_from = config.evaluation.correct_from
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
