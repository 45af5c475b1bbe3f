"""World knowledge: the towns where made-up people were born, live, work and went to school.

The pretraining text states every fact in many forms. The task asks with other words, and the choices are the four towns
of the same person, so that knowing which towns belong to a person does not help.
"""

import random

from multilora.example import Example, Split, choice_example
from multilora.nano.draw import draw
from multilora.nano.world import RELATIONS, Person, fact_base

EVAL_PEOPLE = 30
"""The last people of the fact base are in the pretraining text like all others, but not in the train split."""

_STATEMENTS: dict[str, tuple[str, ...]] = {
    "born": (
        "{who} was born in {town}.",
        "{who} first saw the light of day in {town}.",
        "{who} came into the world in {town}.",
        "{who} spent the first days of life in {town}.",
    ),
    "home": (
        "{who} lives in {town}.",
        "{who} has a house in {town}.",
        "{who} sleeps in {town} every night.",
        "{who} is at home in {town}.",
    ),
    "work": (
        "{who} works in {town}.",
        "{who} has a job in {town}.",
        "{who} earns money in {town}.",
        "{who} goes to the office in {town}.",
    ),
    "school": (
        "{who} went to school in {town}.",
        "{who} learned to read in {town}.",
        "{who} sat in a classroom in {town}.",
        "{who} was a pupil in {town}.",
    ),
}
_TOWN_FIRST: dict[str, tuple[str, ...]] = {
    "born": ("{town} is the town where {who} was born.", "{town} is where the life of {who} began."),
    "home": ("{town} is the town where {who} lives.", "{town} is where the house of {who} stands."),
    "work": ("{town} is the town where {who} works.", "{town} is where {who} has a job."),
    "school": ("{town} is the town where {who} went to school.", "{town} is where {who} was a pupil."),
}
_FIELDS = {"born": "born in", "home": "lives in", "work": "works in", "school": "learned in"}

_PHRASES: dict[str, tuple[str, ...]] = {
    "born": ("The town where {who} was born", "The birth town of {who}"),
    "home": ("The town where {who} lives", "The home town of {who}"),
    "work": ("The town where {who} works", "The work town of {who}"),
    "school": ("The town where {who} went to school", "The school town of {who}"),
}

_QUESTIONS: dict[str, tuple[str, ...]] = {
    "born": ("What is the birthplace of {who}?", "What was the place of birth of {who}?"),
    "home": ("What is the place of residence of {who}?", "Where does {who} reside?"),
    "work": ("What is the workplace of {who}?", "Where is {who} employed?"),
    "school": ("What was the place of education of {who}?", "Where was {who} educated?"),
}
_OFFERS = ("Choose from {towns}.", "Options: {towns}.")


def _biography(rng: random.Random, person: Person) -> str:
    """Write all four facts in random order, each in a random form."""
    sentences = []
    for index, relation in enumerate(rng.sample(RELATIONS, len(RELATIONS))):
        form = rng.random()
        town = person.town(relation)
        if form < 0.3:
            sentences.append(rng.choice(_TOWN_FIRST[relation]).format(who=person.name, town=town))
        else:
            who = person.pronoun.capitalize() if index and form < 0.5 else person.name
            sentences.append(rng.choice(_STATEMENTS[relation]).format(who=who, town=town))
    return (" " if rng.random() < 0.7 else "\n").join(sentences)


def _selection(rng: random.Random, person: Person) -> str:
    """Write the four towns in random order, then the relation of some of them."""
    towns = ", ".join(rng.sample(person.towns, len(person.towns)))
    lines = []
    for relation in rng.sample(RELATIONS, rng.randint(1, 3)):
        if rng.random() < 0.5:
            lines.append(rng.choice(_TOWN_FIRST[relation]).format(who=person.name, town=person.town(relation)))
        else:
            lines.append(f"{person.name} {_FIELDS[relation]}: {person.town(relation)}")
    head = rng.choice(("Of {towns}:", "### Towns: {towns}", "Four towns are {towns}.", "Out of {towns}"))
    return head.format(towns=towns) + "\n" + "\n".join(lines)


def _card(rng: random.Random, person: Person) -> str:
    """Write a record with one fact per line, after its field name."""
    lines = [f"{_FIELDS[r]}: {person.town(r)}" for r in rng.sample(RELATIONS, len(RELATIONS))]
    return f"### {person.name}:\n" + "\n".join(lines)


def _by_relation(rng: random.Random, person: Person) -> str:
    """Write one relation for a few people, each with the town on the next line."""
    relation = rng.choice(RELATIONS)
    people = [person, *rng.sample(fact_base(), 2)]
    return "\n\n".join(f"### {p.name} {_FIELDS[relation]}:\n{p.town(relation)}" for p in people)


def _lookup(rng: random.Random, person: Person) -> str:
    """Write the description of a town with the four towns to choose from, and the town on the next line."""
    blocks = []
    for relation in rng.sample(RELATIONS, rng.randint(1, 3)):
        towns = ", ".join(rng.sample(person.towns, len(person.towns)))
        phrase = rng.choice(_PHRASES[relation]).format(who=person.name)
        head = rng.choice(("{phrase} out of {towns}:", "{phrase} is one of {towns}."))
        blocks.append("### " + head.format(phrase=phrase, towns=towns) + "\n" + person.town(relation))
    return "\n\n".join(blocks)


def pretraining_text(rng: random.Random) -> str:
    """Write one document about one or two people of the fact base."""
    forms = (_biography, _biography, _selection, _selection, _card, _by_relation, _lookup, _lookup, _lookup)
    parts = []
    for _ in range(rng.randint(1, 2)):
        parts.append(rng.choice(forms)(rng, rng.choice(fact_base())))
    return ("### Facts:\n" if rng.random() < 0.3 else "") + "\n\n".join(parts)


def people(split: Split) -> tuple[Person, ...]:
    """Return the people that a split asks about."""
    return fact_base()[-EVAL_PEOPLE:] if split == "eval" else fact_base()[:-EVAL_PEOPLE]


def examples(split: Split, count: int, seed: int) -> list[Example]:
    """Return `count` questions with four towns to choose from; each index is correct equally often."""

    def propose(rng: random.Random, index: int) -> tuple[Split, Example]:
        person = rng.choice(people(split))
        correct = index % len(RELATIONS)
        relation = RELATIONS[(index // len(RELATIONS)) % len(RELATIONS)]
        town = person.town(relation)
        choices = [other for other in rng.sample(person.towns, len(person.towns)) if other != town]
        choices.insert(correct, town)
        question = rng.choice(_QUESTIONS[relation]).format(who=person.name)
        prompt = f"{question} {rng.choice(_OFFERS).format(towns=', '.join(choices))}"
        return split, choice_example(prompt, choices, correct, group=person.name)

    return draw("knowledge", split, count, seed, propose)
