"""Understanding: decide whether a statement follows from a short passage, yes or no.

There are three kinds: amounts (has 12 cups: has more than 7?), states (is open: is shut?) and sorts (finds an owl:
finds an animal?). Yes and no are equally frequent for every kind, so the statement alone does not reveal the answer.
"""

import random
from collections.abc import Callable

from multilora.example import Example, Split, choice_example
from multilora.nano.draw import draw, split_of
from multilora.nano.world import ANIMALS, FIRST_NAMES, FOODS, PLACES, THINGS, pronoun

OPPOSITES = (
    ("open", "shut"),
    ("full", "empty"),
    ("wet", "dry"),
    ("clean", "dirty"),
    ("light", "dark"),
    ("warm", "cold"),
)
SORTS = {"an animal": ANIMALS, "something to eat": FOODS, "a thing": THINGS}
_VERBS = ("has", "finds", "sees", "wants")


def _amounts(rng: random.Random, follows: bool) -> tuple[str, str]:
    """State how many things somebody has; ask whether it is more than a threshold."""
    name, things = rng.choice(FIRST_NAMES), f"{rng.choice(THINGS)}s"
    # Independent of the answer, or the threshold would reveal it.
    threshold = rng.randint(9, 20)
    amount = threshold + rng.randint(1, 8) * (1 if follows else -1)
    return f"{name} has {amount} {things}.", f"{name} has more than {threshold} {things}"


def _states(rng: random.Random, follows: bool) -> tuple[str, str]:
    """State one of two opposite states of something; ask about this or the opposite one."""
    name, noun = rng.choice(FIRST_NAMES), rng.choice(PLACES + THINGS)
    pair = rng.choice(OPPOSITES)
    state, other = rng.sample(pair, 2)
    return f"{name} looks at the {noun}. The {noun} is {state}.", f"the {noun} is {state if follows else other}"


def _sorts(rng: random.Random, follows: bool) -> tuple[str, str]:
    """Name something that somebody meets; ask whether it is of this or another sort."""
    name, verb, place = rng.choice(FIRST_NAMES), rng.choice(_VERBS), rng.choice(PLACES)
    sort, other = rng.sample(tuple(SORTS), 2)
    word = rng.choice(SORTS[sort])
    passage = f"{name} goes to the {place}. {pronoun(name).capitalize()} {verb} the {word}."
    return passage, f"{name} {verb} {sort if follows else other}"


_KINDS: tuple[Callable[[random.Random, bool], tuple[str, str]], ...] = (_amounts, _amounts, _states, _sorts)
_FRAMES = (
    "{passage} Does it follow that {statement}? Answer yes or no.",
    "{passage} Is it true that {statement}? Answer yes or no.",
    "Read this: {passage} Can we conclude that {statement}? Answer yes or no.",
)
_CHOICES = ["yes", "no"]


def examples(split: Split, count: int, seed: int) -> list[Example]:
    """Return `count` questions, half of them yes; no passage and statement are in both splits."""

    def propose(rng: random.Random, index: int) -> tuple[Split, Example]:
        correct = index % 2
        passage, statement = _KINDS[(index // 2) % len(_KINDS)](rng, correct == 0)
        prompt = rng.choice(_FRAMES).format(passage=passage, statement=statement)
        return split_of(f"{passage} {statement}"), choice_example(prompt, list(_CHOICES), correct)

    return draw("understanding", split, count, seed, propose)
