"""Understanding: does a statement follow from a short passage, yes or no.

Three kinds: amounts (has 12 cups: has more than 7?), states (is open: is shut?) and sorts (finds an owl: finds an
animal?). Yes and no are equally frequent for every kind, so that the statement alone tells nothing.
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
    """Somebody has a number of things; more than another number?"""
    name, things = rng.choice(FIRST_NAMES), f"{rng.choice(THINGS)}s"
    # The number asked for is drawn without a look at the answer, or it would give the answer away.
    asked = rng.randint(9, 20)
    has = asked + rng.randint(1, 8) * (1 if follows else -1)
    return f"{name} has {has} {things}.", f"{name} has more than {asked} {things}"


def _states(rng: random.Random, follows: bool) -> tuple[str, str]:
    """Something is in one of two opposite states; in this one?"""
    name, what = rng.choice(FIRST_NAMES), rng.choice(PLACES + THINGS)
    pair = rng.choice(OPPOSITES)
    state, other = rng.sample(pair, 2)
    return f"{name} looks at the {what}. The {what} is {state}.", f"the {what} is {state if follows else other}"


def _sorts(rng: random.Random, follows: bool) -> tuple[str, str]:
    """Somebody meets something of one sort; of that sort?"""
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
    """`count` questions, half of them yes; the same passage and statement are in one split only."""

    def propose(rng: random.Random, place: int) -> tuple[Split, Example]:
        label = place % 2
        passage, statement = _KINDS[(place // 2) % len(_KINDS)](rng, label == 0)
        prompt = rng.choice(_FRAMES).format(passage=passage, statement=statement)
        return split_of(f"{passage} {statement}"), choice_example(prompt, list(_CHOICES), label)

    return draw("understanding", split, count, seed, propose)
