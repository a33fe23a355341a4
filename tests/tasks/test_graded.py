"""Every task's solutions earn the full reward from its own grader, in workers, and something else earns nothing."""


from salt_jax.graders.pool import GraderPool
from salt_jax.tasks import TASKS

HUMANEVAL = {
    "task_id": "HumanEval/53", "prompt": 'def add(x: int, y: int):\n    """Add x and y."""\n',
    "canonical_solution": "    return x + y\n", "entry_point": "add",
    "test": "\n\ndef check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate(2, -2) == 0\n",
}  # fmt: skip
MBPP = {"task_id": 602, "text": "Double.", "code": "def f(x):\r\n  return 2 * x", "test_setup_code": "ONE = 1",
        "test_list": ["assert f(ONE) == 2"]}  # fmt: skip


def test_solutions_earn_the_full_reward(write, tmp_path, tokenizer):
    for split in ("train", "test"):
        write(f"{split}.jsonl", [{"question": "How many?", "answer": "2 + 2 = <<2+2=4>>4\n#### 1,224"}])
    math = write("math.jsonl", [{"problem": "p", "solution": r"so $\boxed{\frac{1}{2}}$."}])
    code = {"task": "humaneval", "test": write("h.jsonl", [HUMANEVAL]), "sandbox": "limits"}
    parts = {
        "sums": {"task": "arithmetic", "num_train": 3, "num_test": 2},
        "gsm8k": {"task": "gsm8k", "path": str(tmp_path)},
        "math": {"task": "math", "test": math},
        "aime": {"task": "aime", "test": write("a.jsonl", [{"problem": "p", "answer": "033", "solution": "33"}])},
        "humaneval": code,
        "continued": code | {"instruction": ""},
        "mbpp": {"task": "mbpp", "test": write("m.jsonl", [MBPP]), "sandbox": "limits"},
        "gym": {"task": "reasoning_gym", "dataset": "gsm_symbolic", "num_train": 3, "num_test": 2},
        "own": {
            "task": "jsonl", "test": write("o.jsonl", [{"prompt": "?", "reference": "B", "solution": "B"}]),
            "reward": "multiple_choice",
        },
    }  # fmt: skip
    task = TASKS["mixture"](tmp_path, parts=parts, tokenizer=tokenizer)
    examples = list(task.source("test"))
    assert {e.id.split("/")[0] for e in examples} == set(parts)
    references = [e.reference for e in examples]
    with GraderPool(task.verifier, workers=1, deadline=60.0) as pool:
        right = pool.grade([e.solution for e in examples], references)
        wrong = pool.grade(["It is \\boxed{77}."] * len(examples), references)
    assert right.errors.first == wrong.errors.first == ""
    assert right.rewards.tolist() == [1.0] * len(examples)
    assert wrong.rewards.max() < 0.1
