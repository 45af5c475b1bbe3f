"""The made-up world of the nano texts: words, names, towns and a fact base of people."""

import random
from dataclasses import dataclass
from functools import cache

COLOURS = ("red", "blue", "green", "pink", "gold", "grey", "black", "white", "brown", "cream")
ANIMALS = ("cat", "dog", "hen", "fox", "owl", "crab", "frog", "goat", "seal", "wolf")
FOODS = ("bread", "egg", "jam", "leek", "plum", "rice", "soup", "nut", "yam", "lime")
THINGS = ("ball", "cup", "drum", "hat", "key", "lamp", "mug", "rope", "tent", "vase")

CATEGORIES: dict[str, tuple[str, ...]] = {
    "colours": COLOURS,
    "animals": ANIMALS,
    "foods": FOODS,
    "things": THINGS,
}
WORDS = COLOURS + ANIMALS + FOODS + THINGS

PLACES = ("bag", "box", "barn", "attic", "cellar", "garden", "kitchen", "shed", "tower", "yard")

SHE_NAMES = ("Ada", "Bea", "Cleo", "Dora", "Elsa", "Faye", "Gwen", "Hana", "Isla", "Juno", "Kira", "Lena")
HE_NAMES = ("Abel", "Bram", "Carl", "Dirk", "Emil", "Finn", "Gus", "Hugo", "Ivan", "Jack", "Karl", "Leo")
FIRST_NAMES = SHE_NAMES + HE_NAMES

TOWNS = (
    "Arnwick", "Belmoor", "Corvale", "Dunhaven", "Eastrill", "Fernlow", "Garsby", "Holmere",
    "Inchford", "Jarrowby", "Kelbrook", "Lanthorpe", "Marwell", "Norbeck", "Oxmead", "Pellham",
    "Quenby", "Rosfield", "Selwick", "Tarnlea", "Ulverby", "Venmoor", "Wexcombe", "Yarholt",
    "Zelford", "Ashgill", "Brindle", "Cragside", "Dovecot", "Elmstead",
)  # fmt: skip

RELATIONS = ("born", "home", "work", "school")

_HEADS = (
    "Bal", "Cor", "Dal", "Fen", "Gar", "Hol", "Jor", "Kel", "Lor", "Mar",
    "Nor", "Pel", "Ros", "Sel", "Tor", "Val", "Wen", "Yor",
)  # fmt: skip
_TAILS = (
    "bin", "cott", "dane", "fell", "gan", "hart", "lick", "mond", "nard", "pole",
    "quist", "ridd", "stow", "tain", "vick", "wold",
)  # fmt: skip


@dataclass(frozen=True)
class Person:
    """One person of the fact base, with four different towns in the order of `RELATIONS`."""

    first: str
    last: str
    towns: tuple[str, str, str, str]

    @property
    def name(self) -> str:
        """First and last name."""
        return f"{self.first} {self.last}"

    @property
    def pronoun(self) -> str:
        """`he` or `she`."""
        return pronoun(self.first)

    def town(self, relation: str) -> str:
        """Return the town for one of `RELATIONS`."""
        return self.towns[RELATIONS.index(relation)]


@cache
def fact_base(seed: int = 0, count: int = 120) -> tuple[Person, ...]:
    """Return `count` people with different last names; the towns of each person are drawn at random."""
    last_names = [head + tail for head in _HEADS for tail in _TAILS]
    if count > len(last_names):
        raise ValueError(f"count is {count}, but only {len(last_names)} people can be made; reduce it")
    rng = random.Random(f"fact base {seed}")
    people = []
    for last in rng.sample(last_names, count):
        born, home, work, school = rng.sample(TOWNS, len(RELATIONS))
        people.append(Person(rng.choice(FIRST_NAMES), last, (born, home, work, school)))
    return tuple(people)


def pronoun(first: str) -> str:
    """Return `he` or `she` for a first name."""
    return "she" if first in SHE_NAMES else "he"
