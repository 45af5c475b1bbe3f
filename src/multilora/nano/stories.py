"""Short stories for the pretraining text: a passage, then the facts that follow from it.

They are about where things are, who has them, who is taller, and what colour things have.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from multilora.nano.world import COLOURS, FIRST_NAMES, PLACES, THINGS, pronoun


@dataclass(frozen=True)
class Fact:
    """One fact that follows from a passage.

    `topic` and `statement` are its forms in the text, with the placeholder {answer}. `wrong` contains other names or
    values of the passage.
    """

    topic: str
    statement: str
    answer: str
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """A passage and the facts at its end."""

    passage: str
    facts: tuple[Fact, ...]


def _places(rng: random.Random) -> Scene:
    """Place two things and move them up to two times."""
    things = rng.sample(THINGS, 2)
    places = rng.sample(PLACES, 4)
    now = dict(zip(things, places, strict=False))
    sentences = [f"The {thing} is in the {place}." for thing, place in now.items()]
    moves = rng.randint(0, 2)
    for place in places[2 : 2 + moves]:
        thing, name = rng.choice(things), rng.choice(FIRST_NAMES)
        now[thing] = place
        sentences.append(f"{name} {rng.choice(('moves', 'takes', 'carries'))} the {thing} to the {place}.")
    used = places[: 2 + moves]
    facts = [
        Fact(
            f"place of the {thing}",
            f"The {thing} is in the {{answer}}.",
            place,
            tuple(other for other in used if other != place),
        )
        for thing, place in now.items()
    ]
    return Scene(" ".join(sentences), tuple(facts))


def _owners(rng: random.Random) -> Scene:
    """Give two things to two people and pass them on up to two times, among three people."""
    things = rng.sample(THINGS, 2)
    names = rng.sample(FIRST_NAMES, 3)
    now = dict(zip(things, names, strict=False))
    sentences = [f"{name} has the {thing}." for thing, name in now.items()]
    used = names[:2]
    for _ in range(rng.randint(0, 2)):
        thing = rng.choice(things)
        giver = now[thing]
        taker = rng.choice([name for name in names if name != giver])
        now[thing] = taker
        used.append(taker)
        sentences.append(f"{giver} {rng.choice(('gives', 'hands'))} the {thing} to {taker}.")
    facts = [
        Fact(
            f"owner of the {thing}",
            f"{{answer}} has the {thing}.",
            name,
            tuple(other for other in names if other in used and other != name),
        )
        for thing, name in now.items()
    ]
    return Scene(" ".join(sentences), tuple(facts))


def _sizes(rng: random.Random) -> Scene:
    """Order three people by height, stated as two adjacent pairs in either direction."""
    tall, middle, short = rng.sample(FIRST_NAMES, 3)
    sentences = []
    for upper, lower in ((tall, middle), (middle, short)):
        if rng.random() < 0.5:
            sentences.append(f"{upper} is taller than {lower}.")
        else:
            sentences.append(f"{lower} is smaller than {upper}.")
    rng.shuffle(sentences)
    facts = []
    for upper, lower in ((tall, middle), (middle, short), (tall, short)):
        both = " and ".join(rng.sample((upper, lower), 2))
        for word, answer, wrong in (("taller", upper, lower), ("smaller", lower, upper)):
            facts.append(
                Fact(
                    f"{word} of {both}",
                    f"{{answer}} is {word} than {wrong}.",
                    answer,
                    (wrong,),
                )
            )
    return Scene(" ".join(sentences), tuple(facts))


def _colours(rng: random.Random) -> Scene:
    """Give things colours and perhaps paint one in another colour."""
    things = rng.sample(THINGS, rng.randint(2, 3))
    colours = rng.sample(COLOURS, 4)
    now = dict(zip(things, colours, strict=False))
    sentences = [f"The {thing} is {colour}." for thing, colour in now.items()]
    used = colours[: len(things)]
    if rng.random() < 0.6:
        thing = rng.choice(things)
        now[thing] = colours[3]
        used.append(colours[3])
        sentences.append(f"{rng.choice(FIRST_NAMES)} paints the {thing} {colours[3]}.")
    facts = [
        Fact(
            f"colour of the {thing}",
            f"The {thing} is {{answer}}.",
            colour,
            tuple(other for other in used if other != colour),
        )
        for thing, colour in now.items()
    ]
    return Scene(" ".join(sentences), tuple(facts))


_SCENES: tuple[Callable[[random.Random], Scene], ...] = (_places, _owners, _sizes, _colours)


def _aside(rng: random.Random) -> str:
    """Write a short dialogue."""
    a, b = rng.sample(FIRST_NAMES, 2)
    verdict, deed = rng.choice((("yes", "smiles"), ("no", "walks off")))
    return f"{a} asks {b} for the {rng.choice(THINGS)}. {b} says {verdict} and {pronoun(b)} {deed}."


def pretraining_text(rng: random.Random) -> str:
    """Write one document: a passage, then its facts in sentences or under headings."""
    scene = rng.choice(_SCENES)(rng)
    head = "### Story:\n" if rng.random() < 0.5 else ""
    form = rng.random()
    if form < 0.05:
        return f"{head}{scene.passage} {_aside(rng)}"
    facts = rng.sample(scene.facts, min(len(scene.facts), 3))
    if form < 0.4:
        ending = " ".join(fact.statement.format(answer=fact.answer) for fact in facts)
        return f"{head}{scene.passage}\n\n### At the end:\n{ending}"
    blocks = [f"{head}{scene.passage}"]
    for fact in facts:
        heading = f"The {fact.topic}"
        if form > 0.7:
            choices = rng.sample((fact.answer, rng.choice(fact.wrong)), 2)
            heading += f", {choices[0]} or {choices[1]}"
        blocks.append(f"### {heading}:\n{fact.answer}")
    return "\n\n".join(blocks)
