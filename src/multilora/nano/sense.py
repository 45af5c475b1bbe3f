"""Plain statements of what words and numbers mean, for the pretraining text.

They state what the understanding task needs to know: which states exclude each other, what sort of thing a word names,
and which number is larger. Short dialogues introduce `yes` and `no` at the start of a line, as random answers.
"""

import random

from multilora.nano.understanding import OPPOSITES, SORTS
from multilora.nano.world import FIRST_NAMES, PLACES, THINGS


def _state(rng: random.Random) -> str:
    state, other = rng.sample(rng.choice(OPPOSITES), 2)
    noun = rng.choice(PLACES + THINGS)
    return rng.choice(
        (
            f"What is {state} is not {other}.",
            f"The {noun} is {state}, so it is not {other}.",
            f"The {noun} was {other}. Now the {noun} is {state}.",
        )
    )


def _sort(rng: random.Random) -> str:
    sort = rng.choice(tuple(SORTS))
    word = rng.choice(SORTS[sort])
    name = rng.choice(FIRST_NAMES)
    return rng.choice((f"The {word} is {sort}.", f"{name} sees the {word}, and so {name} sees {sort}."))


def _amount(rng: random.Random) -> str:
    less, more = sorted(rng.sample(range(1, 30), 2))
    a, b = rng.sample(FIRST_NAMES, 2)
    things = f"{rng.choice(THINGS)}s"
    return rng.choice(
        (
            f"{more} is more than {less}.",
            f"{less} is less than {more}.",
            f"{a} has {more} {things} and {b} has {less} {things}. {a} has more than {b}.",
            f"{a} has {less} {things} and {b} has {more} {things}. {b} has more than {a}.",
        )
    )


def _dialogue(rng: random.Random) -> str:
    a, b = rng.sample(FIRST_NAMES, 2)
    return f"{a} asks {b} for the {rng.choice(THINGS)}:\n{rng.choice(('yes', 'no'))}"


_LINES = (_state, _sort, _amount, _amount, _dialogue)


def pretraining_text(rng: random.Random) -> str:
    """Write one document: a few statements, one per line."""
    head = "### Notes:\n" if rng.random() < 0.3 else ""
    return head + "\n".join(rng.choice(_LINES)(rng) for _ in range(rng.randint(4, 8)))
