"""Arithmetic: word problems of one to three steps; the responses show the steps.

The pretraining text has sums and stories that state each new amount. The task asks for the steps and the answer.
"""

import random
from dataclasses import dataclass

from multilora.example import Example, Split, free_example
from multilora.nano.draw import draw, split_of
from multilora.nano.world import FIRST_NAMES, pronoun

ITEMS = ("apples", "books", "coins", "eggs", "nuts", "pens", "plums", "shells", "stamps", "stones")
LARGEST = 99
"""Largest amount in any problem."""

_LENGTHS = (1, 2, 2, 3)
"""Number of steps of consecutive examples, repeated cyclically."""

_GAINS = ("buys", "finds", "gets", "wins", "picks up")
_LOSSES = ("loses", "sells", "gives away", "drops", "throws away")


@dataclass(frozen=True)
class Problem:
    """`start` items (or `start` boxes with `each` items), then gains (positive) and losses (negative)."""

    start: int
    each: int
    changes: tuple[int, ...]

    def steps(self) -> list[tuple[int, str, int, int]]:
        """Return (left, operator, right, result) of each step."""
        steps = []
        amount = self.start
        if self.each:
            steps.append((self.start, "*", self.each, self.start * self.each))
            amount *= self.each
        for change in self.changes:
            steps.append((amount, "+" if change > 0 else "-", abs(change), amount + change))
            amount += change
        return steps

    def answer(self) -> int:
        """Return the final amount."""
        return self.steps()[-1][3]


def _problem(rng: random.Random, length: int) -> Problem:
    """Return a random problem of `length` steps with all amounts between 0 and `LARGEST`."""
    if rng.random() < 0.25:
        start, each = rng.randint(2, 9), rng.randint(2, 9)
        amount = start * each
    else:
        start, each = rng.randint(2, 50), 0
        amount = start
    changes: list[int] = []
    while len(changes) < length - bool(each):
        change = rng.randint(1, 20) * rng.choice((-1, 1))
        if 0 <= amount + change <= LARGEST:
            changes.append(change)
            amount += change
    return Problem(start, each, tuple(changes))


def _equation(step: tuple[int, str, int, int]) -> str:
    left, operator, right, result = step
    return f"{left} {operator} {right} = {result}."


def _story(rng: random.Random, problem: Problem, name: str, item: str, *, amounts: bool) -> str:
    """Write the problem in sentences; with `amounts`, state the amount after each step."""
    subject = pronoun(name).capitalize()
    results = [step[3] for step in problem.steps()]
    sentences = []
    if problem.each:
        sentences.append(f"{name} has {problem.start} boxes with {problem.each} {item} in each box.")
        if amounts:
            sentences.append(f"That makes {results[0]} {item}.")
    else:
        sentences.append(f"{name} has {problem.start} {item}.")
    for change, result in zip(problem.changes, results[-len(problem.changes) :], strict=False):
        who = rng.choice((subject, f"Then {subject.lower()}", name))
        if change > 0:
            sentences.append(f"{who} {rng.choice(_GAINS)} {change} more.")
        else:
            sentences.append(f"{who} {rng.choice(_LOSSES)} {-change}.")
        if amounts:
            sentences.append(f"Now {subject.lower()} has {result} {item}.")
    return " ".join(sentences)


def _sums(rng: random.Random) -> str:
    """Write a few lines of sums; within a line each sum continues the previous one."""
    equations = []
    for _ in range(rng.randint(2, 4)):
        steps = _problem(rng, rng.randint(1, 3)).steps()
        equations.append(" ".join(_equation(step) for step in steps))
    return "### Sums:\n" + "\n".join(equations)


def pretraining_text(rng: random.Random) -> str:
    """Write one document: sums, a story that states its amounts, or a story followed by its sums."""
    form = rng.random()
    if form < 0.3:
        return _sums(rng)
    problem = _problem(rng, rng.randint(1, 3))
    name, item = rng.choice(FIRST_NAMES), rng.choice(ITEMS)
    if form < 0.6:
        story = _story(rng, problem, name, item, amounts=True)
        return ("### Story:\n" if rng.random() < 0.5 else "") + story
    story = _story(rng, problem, name, item, amounts=False)
    sums = " ".join(_equation(step) for step in problem.steps())
    return f"### Story:\n{story}\n\n### Sums:\n{sums} So there are {problem.answer()} {item}."


_QUESTIONS = (
    "How many {item} does {name} have now?",
    "How many {item} are there in the end?",
    "What number of {item} is left with {name}?",
)


def examples(split: Split, count: int, seed: int) -> list[Example]:
    """Return `count` word problems; problems with the same numbers are all in the same split."""

    def propose(rng: random.Random, index: int) -> tuple[Split, Example]:
        problem = _problem(rng, _LENGTHS[index % len(_LENGTHS)])
        name, item = rng.choice(FIRST_NAMES), rng.choice(ITEMS)
        question = rng.choice(_QUESTIONS).format(name=name, item=item)
        prompt = f"{_story(rng, problem, name, item, amounts=False)} {question}"
        answer = str(problem.answer())
        work = " ".join(_equation(step) for step in problem.steps())
        response = f"{work} The answer is {answer}."
        example = free_example(prompt, response, answer)
        return split_of(f"{problem.start} {problem.each} {problem.changes}"), example

    return draw("arithmetic", split, count, seed, propose)
