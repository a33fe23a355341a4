"""reasoning-gym: each generator's own scoring, on entries that went through JSON."""

from __future__ import annotations

import json
import warnings

import pytest

from salt_jax.graders import Grader, GraderError, GraderPool, Verdict
from salt_jax.graders.reasoning import TUPLES, score_answer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own dependencies, while they are imported
    import reasoning_gym

# Of each kind: exact texts, numbers, scores of their own, keys that JSON turns into texts, grids of tuples.
NAMES = (
    "basic_arithmetic", "chain_sum", "gsm_symbolic", "countdown", "sudoku", "mini_sudoku", "knights_knaves",
    "zebra_puzzles", "word_ladder", "jugs", "tower_of_hanoi", "n_queens", "rotate_matrix", "spiral_matrix",
    "graph_color", "shortest_path", "polynomial_equations", "simple_integration", "dice", "letter_jumble",
    "figlet_font", *TUPLES,
)  # fmt: skip


def entries(name: str) -> tuple[object, list[dict]]:
    dataset = reasoning_gym.create_dataset(name, size=3, seed=5)
    return dataset, [dataset[i] for i in range(2)]


def as_reference(name: str, entry: dict, **more: object) -> str:
    kept = {key: entry[key] for key in ("question", "answer", "metadata")}
    return json.dumps({"dataset": name, "entry": kept, **more})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_scores_survive_json(name):
    dataset, made = entries(name)
    for entry in made:
        answer = entry["answer"]
        if answer is None:  # many answers are right
            answer = json.dumps(entry["metadata"]["possible_answer"])
        right = dataset.score_answer(answer, entry)
        assert right == 1.0
        found = score_answer(f"So <answer>{answer}</answer>", as_reference(name, entry))
        assert found == Verdict(right, answer.strip())
        wrong = dataset.score_answer("wrong 17", entry)
        assert wrong < 1.0
        assert score_answer("<answer>wrong 17</answer>", as_reference(name, entry)).reward == wrong


def test_where_the_answer_stands():
    _, (entry, _) = entries("chain_sum")
    reference, answer = as_reference("chain_sum", entry), entry["answer"]
    texts = {
        "tag": f"x <answer>{answer}</answer> y",
        "boxed": rf"x $\boxed{{{answer}}}$",
        "last_line": f"x\n{answer}\n",
        "text": f" {answer}\n",
    }
    for extract, text in texts.items():
        assert score_answer(text, reference, extract=extract) == Verdict(1.0, answer)
    assert score_answer(answer, reference) == Verdict(0.0, None)
    with pytest.raises(GraderError, match="'box' is unknown; allowed: tag, boxed, last_line, last_number, text"):
        score_answer(answer, reference, extract="box")


def test_a_generators_settings():
    dataset = reasoning_gym.create_dataset("chain_sum", size=1, seed=5, min_terms=3)
    reference = as_reference("chain_sum", dataset[0], config={"min_terms": 3})
    assert score_answer(f"<answer>{dataset[0]['answer']}</answer>", reference).reward == 1.0


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("[]", "no JSON object with 'dataset', 'entry' and perhaps 'config'"),
        ('{"dataset": "chain_sum"}', "no JSON object with 'dataset', 'entry'"),
        ('{"dataset": "chain_sum", "entry": {"answer": "1"}}', "has not all of 'question', 'answer' and 'metadata'"),
        ('{"dataset": "none", "entry": {"question": "", "answer": "1", "metadata": {}}}', "'none' not registered"),
    ],
)
def test_references_that_are_none(reference, message):
    with pytest.raises(ValueError, match=message):
        score_answer("<answer>1</answer>", reference)


def test_in_workers():
    _, made = entries("countdown")
    with GraderPool(Grader("salt_jax.graders.reasoning:score_answer"), workers=1, deadline=30) as pool:
        grades = pool.grade(
            [f"<answer>{entry['answer']}</answer>" for entry in made], [as_reference("countdown", e) for e in made]
        )
    assert grades.rewards.tolist() == [1.0, 1.0], grades.errors
