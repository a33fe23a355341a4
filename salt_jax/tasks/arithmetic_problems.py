"""The problems of the arithmetic task: a numbered space of texts like "12+34=", and splits drawn from it."""

from __future__ import annotations

import dataclasses
import random

from salt_jax.tasks.settings import check_integer

MOST = 60  # operands, and digits of one
OPERATORS = {"+": "add", "-": "sub", "*": "mul"}


@dataclasses.dataclass(frozen=True)
class ArithmeticProblems:
    """A train and a test set of distinct problems, a pure function of these settings.

    A problem is ``operands`` integers, each uniform in [0, 10^digits − 1] and written without leading zeros,
    joined by operators drawn uniformly; '*' binds before '+' and '-'. Answers may be negative. Problems
    differ when their texts differ: 12+34 and 34+12 are two, and one may be in train and the other in test.

    Attributes:
      operands: numbers in a problem, 2 to 60.
      digits: most digits of a number, 1 to 60.
      operators: distinct characters of '+-*', their order is irrelevant.
      num_train: problems in the train split.
      num_test: problems in the test split; disjoint from train.
      seed: chooses the problems, ≥ 0.

    Raises:
      ValueError: a setting out of range, naming it and what is allowed; more problems than there are.

    Example:
      >>> problems = ArithmeticProblems(num_train=7, num_test=3)
      >>> problems.space, problems.name
      (10000, 'operands2_digits2_add_train7_test3_seed0')
      >>> problems.problem(1234)
      ('12+34=', '46')
    """

    operands: int = 2
    digits: int = 2
    operators: str = "+"
    num_train: int = 8000
    num_test: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"operands": 2, "digits": 1, "num_train": 1, "num_test": 1, "seed": 0}
        for name, minimum in least.items():
            check_integer(minimum, **{name: getattr(self, name)})
        for name in ("operands", "digits"):  # there are 10^(operands x digits) problems and more
            if getattr(self, name) > MOST:
                raise ValueError(f"{name} = {getattr(self, name)!r} is not allowed; allowed: integers up to {MOST}")
        if not isinstance(self.operators, str) or not self.operators or not set(self.operators) <= set(OPERATORS):
            raise ValueError(f"operators = {self.operators!r} is not allowed; allowed: one or more of '+-*'")
        if len(set(self.operators)) != len(self.operators):
            raise ValueError(
                f"operators = {self.operators!r} repeats one; allowed: each of '+-*' at most once"
            )
        if self.num_train + self.num_test > self.space:
            raise ValueError(
                f"num_train + num_test = {self.num_train + self.num_test} exceeds the {self.space} problems with"
                f" {self.operands} operands of up to {self.digits} digits and operators {self.operators!r}"
            )

    @property
    def ordered_operators(self) -> str:
        """The operators in the order of '+-*', so that '-+' and '+-' are the same data set."""
        return "".join(operator for operator in OPERATORS if operator in self.operators)

    @property
    def space(self) -> int:
        """Number of distinct problems, (10^digits)^operands · |operators|^(operands − 1)."""
        return 10 ** (self.digits * self.operands) * len(self.operators) ** (self.operands - 1)

    @property
    def name(self) -> str:
        """Every setting in one word, the data set's folder: different settings never share data."""
        operators = "".join(OPERATORS[operator] for operator in self.ordered_operators)
        return (
            f"operands{self.operands}_digits{self.digits}_{operators}"
            f"_train{self.num_train}_test{self.num_test}_seed{self.seed}"
        )

    def problem(self, index: int) -> tuple[str, str]:
        """Prompt and answer number ``index`` of the space: a one-to-one numbering in mixed radix."""
        numbers, operators = [], []
        for _ in range(self.operands):
            index, number = divmod(index, 10**self.digits)
            numbers.append(number)
        for _ in range(self.operands - 1):
            index, choice = divmod(index, len(self.operators))
            operators.append(self.ordered_operators[choice])
        numbers.reverse()
        text, terms = str(numbers[0]), [numbers[0]]
        for operator, number in zip(operators, numbers[1:], strict=True):
            text += f"{operator}{number}"
            if operator == "*":
                terms[-1] *= number
            else:
                terms.append(number if operator == "+" else -number)
        return f"{text}=", str(sum(terms))

    def splits(self) -> dict[str, list[tuple[str, str]]]:
        """'train' and 'test', as (prompt, answer) in random order, drawn without replacement."""
        count = self.num_train + self.num_test
        rng = random.Random(self.seed)
        if 2 * count >= self.space:
            chosen = rng.sample(range(self.space), count)
        else:  # the space may exceed what random.sample can index
            distinct: dict[int, None] = {}
            while len(distinct) < count:
                distinct[rng.randrange(self.space)] = None
            chosen = list(distinct)
        problems = [self.problem(index) for index in chosen]
        return {"train": problems[: self.num_train], "test": problems[self.num_train :]}
