"""DeepSeek-R1-Distill-Qwen-7B on MBPP: programs, graded by running their tests in a confined process (Linux only).

    pip install -e '.[hf]'
    python -m experiments.train --config=configs/mbpp_7b.py --workdir=runs/mbpp \
        --config.model.path=DIR_OF_THE_MODEL --config.task.path=FILE_OF_MBPP

FILE_OF_MBPP is the sanitized or full MBPP as .jsonl or .parquet (salt_jax/tasks/mbpp.py says which columns).
Hardware: 8 GPUs of 80 GB, as r1_distill_qwen_7b_math.py. Not run.
"""

from ml_collections import config_dict

from configs import base


def get_config(size: str = "full") -> config_dict.ConfigDict:
    """``full``, or ``small``: SmolLM2 in its place, two steps of short completions."""
    if size not in ("full", "small"):
        raise ValueError(f"configs/mbpp_7b.py:{size} is unknown; allowed: full, small")
    c = base.get_config()
    base.pretrained(c, "models/DeepSeek-R1-Distill-Qwen-7B")
    base.set_task(
        c, "mbpp", path="data/mbpp.jsonl", time_limit=6.0, memory_mib=1024, sandbox="full",
        on_bad_reference="error",  # or 'skip': rows whose tests check nothing
    )  # fmt: skip
    c.steps = 12  # two epochs of 374 problems
    c.policy.compute_dtype = "bfloat16"
    c.policy.attention = "cudnn"
    c.policy.remat = "full"
    c.sampling.prompts_per_step = 64
    c.sampling.rollouts_per_prompt = 8
    c.sampling.max_prompt_length = 1024
    c.sampling.on_long_prompt = "skip"
    c.sampling.max_new_tokens = 8192
    c.sampling.temperature = 0.6
    c.sampling.wave_mib = 24 * 1024
    c.objective.kl_coef = 0.001
    c.optimizer.learning_rate = 1e-6
    c.learner.minibatches = 2
    c.learner.microbatches = 32
    c.evaluation.every = 4
    c.evaluation.problems = 500
    c.evaluation.batch_size = 64
    c.evaluation.temperature = 0.6
    c.grading.workers = 8
    c.grading.deadline = 30.0
    c.checkpoint.every = 4
    c.mesh.fsdp = 8
    if size == "small":
        base.small_model(c)
    return c
