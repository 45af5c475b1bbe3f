"""Instruction following: transformations of short word lists.

The pretraining text states results ("the words red cat in reverse order are cat red"). The task gives instructions.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from multilora.example import Example, Split, free_example
from multilora.nano.draw import draw, split_of
from multilora.nano.world import CATEGORIES, WORDS

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")


@dataclass(frozen=True)
class Kind:
    """One transformation.

    `heading` and `statements` are its forms in the pretraining text, `orders` its forms in the task. The placeholders
    are `{words}` (the list), `{result}` and `{extra}` (a category).
    """

    name: str
    lengths: tuple[int, int]
    apply: Callable[[list[str], str], list[str]]
    heading: str
    statements: tuple[str, ...]
    orders: tuple[str, ...]
    with_category: bool = False


def _swap(words: list[str], _: str) -> list[str]:
    return [words[-1], *words[1:-1], words[0]]


def _without(words: list[str], category: str) -> list[str]:
    return [word for word in words if word not in CATEGORIES[category]]


def _only(words: list[str], category: str) -> list[str]:
    return [word for word in words if word in CATEGORIES[category]]


KINDS = (
    Kind(
        "reverse",
        (3, 5),
        lambda words, _: words[::-1],
        "Backwards",
        (
            "the words {words} in reverse order are {result}",
            "{words} read from the end to the start is {result}",
            "{words} turned around becomes {result}",
        ),
        (
            "Write these words in reverse order: {words}",
            "Reverse this list of words: {words}",
            "Give the words from the last to the first: {words}",
            "Turn this list around: {words}",
        ),
    ),
    Kind(
        "sort",
        (3, 4),
        lambda words, _: sorted(words),
        "Alphabet",
        (
            "the words {words} in the order of the alphabet are {result}",
            "in alphabetical order {words} becomes {result}",
            "a dictionary has the words {words} in the order {result}",
        ),
        (
            "Sort these words: {words}",
            "Put these words in alphabetical order: {words}",
            "Arrange this list by the alphabet: {words}",
            "Write the words as a dictionary would list them: {words}",
        ),
    ),
    Kind(
        "first",
        (3, 6),
        lambda words, _: words[:1],
        "Start",
        (
            "the first of the words {words} is {result}",
            "the list {words} begins with {result}",
            "{words} has {result} at the start",
        ),
        (
            "Give the first word of this list: {words}",
            "Write only the word that comes first: {words}",
            "Which word begins this list? {words}",
            "Name the opening word: {words}",
        ),
    ),
    Kind(
        "last",
        (3, 6),
        lambda words, _: words[-1:],
        "End",
        (
            "the last of the words {words} is {result}",
            "the list {words} ends with {result}",
            "{words} has {result} at the end",
        ),
        (
            "Give the last word of this list: {words}",
            "Write only the word that comes last: {words}",
            "Which word ends this list? {words}",
            "Name the closing word: {words}",
        ),
    ),
    Kind(
        "swap",
        (3, 5),
        _swap,
        "Exchange",
        (
            "with the first and the last word exchanged {words} becomes {result}",
            "{words} with its two ends swapped is {result}",
            "when the ends of {words} change places we get {result}",
        ),
        (
            "Swap the first and the last word: {words}",
            "Let the two ends of this list change places: {words}",
            "Exchange the first word with the last one: {words}",
            "Write the list with its ends swapped: {words}",
        ),
    ),
    Kind(
        "double",
        (2, 4),
        lambda words, _: [word for word in words for _ in range(2)],
        "Twice",
        (
            "with every word said two times {words} becomes {result}",
            "{words} doubled word by word is {result}",
            "an echo after each word of {words} makes {result}",
        ),
        (
            "Repeat each word twice: {words}",
            "Write every word two times: {words}",
            "Double each word of this list: {words}",
            "Add an echo after every word: {words}",
        ),
    ),
    Kind(
        "capitals",
        (2, 3),
        lambda words, _: [word.upper() for word in words],
        "Capitals",
        (
            "in large letters {words} is {result}",
            "the words {words} in capitals are {result}",
            "on a sign {words} becomes {result}",
        ),
        (
            "Write these words in capital letters: {words}",
            "Use only large letters: {words}",
            "Put this list in capitals: {words}",
            "Turn the words into a sign in capitals: {words}",
        ),
    ),
    Kind(
        "count",
        (2, 7),
        lambda words, _: [_NUMBERS[len(words)]],
        "Number",
        (
            "the number of words in {words} is {result}",
            "the list {words} has a length of {result}",
            "whoever counts {words} gets to {result}",
        ),
        (
            "Count the words: {words}",
            "How many words are in this list? {words}",
            "Give the number of words: {words}",
            "Say how long this list is: {words}",
        ),
    ),
    Kind(
        "without",
        (4, 5),
        _without,
        "Without {extra}",
        (
            "without the {extra} the words {words} are {result}",
            "when all {extra} leave {words} there remains {result}",
            "{words} loses its {extra} and becomes {result}",
        ),
        (
            "Remove the {extra} from this list: {words}",
            "Drop all {extra}: {words}",
            "Write the list without any {extra}: {words}",
            "Leave out the {extra}: {words}",
        ),
        with_category=True,
    ),
    Kind(
        "only",
        (4, 5),
        _only,
        "Only {extra}",
        (
            "the {extra} among the words {words} are {result}",
            "of {words} the {extra} are {result}",
            "when only {extra} stay {words} becomes {result}",
        ),
        (
            "Keep only the {extra} of this list: {words}",
            "Pick out the {extra}: {words}",
            "Write just the {extra}: {words}",
            "Select all {extra}: {words}",
        ),
        with_category=True,
    ),
)


def _mixed_list(rng: random.Random, length: int, category: str | None = None) -> list[str]:
    """Return `length` distinct words, of which some but not all are of one category (random if None)."""
    members = CATEGORIES[category or rng.choice(tuple(CATEGORIES))]
    words = rng.sample(members, rng.randint(1, length - 1))
    words += rng.sample([word for word in WORDS if word not in members], length - len(words))
    rng.shuffle(words)
    return words


def _problem(rng: random.Random, kind: Kind) -> tuple[list[str], str, str]:
    """Return a list of distinct words, the category ("" if the kind has none) and the result."""
    length = rng.randint(*kind.lengths)
    if kind.with_category:
        category = rng.choice(tuple(CATEGORIES))
        words = _mixed_list(rng, length, category)
    else:
        category, words = "", rng.sample(WORDS, length)
    return words, category, " ".join(kind.apply(words, category))


def _results(rng: random.Random) -> tuple[str, list[tuple[Kind, str, str]]]:
    """Return a word list, and several (kind, category, result) for it."""
    words = _mixed_list(rng, rng.randint(2, 6))
    results = []
    for kind in rng.sample(KINDS, len(KINDS)):
        if not kind.lengths[0] <= len(words) <= kind.lengths[1]:
            continue
        categories = [c for c in CATEGORIES if 0 < len(_only(words, c)) < len(words)]
        if kind.with_category and not categories:
            continue
        extra = rng.choice(categories) if kind.with_category else ""
        results.append((kind, extra, " ".join(kind.apply(words, extra))))
    return " ".join(words), results[: rng.randint(3, 6)]


def pretraining_text(rng: random.Random) -> str:
    """Write one document about one word list: statements, or a heading and a result for each transformation.

    All transformations use the same list, because a random list is mostly noise to a language model.
    """
    listing, results = _results(rng)
    if rng.random() < 0.5:
        lines = []
        for kind, extra, result in results:
            line = rng.choice(kind.statements).format(words=listing, extra=extra, result=result)
            lines.append(line + " .")
        return ("### Lists:\n" if rng.random() < 0.5 else "") + "\n".join(lines)
    blocks = [f"### {kind.heading.format(extra=extra)}:\n{result}" for kind, extra, result in results]
    return f"### Words:\n{listing}\n\n" + "\n\n".join(blocks)


def examples(split: Split, count: int, seed: int) -> list[Example]:
    """Return `count` examples; the same transformation of the same list is never in both splits."""

    def propose(rng: random.Random, index: int) -> tuple[Split, Example]:
        kind = KINDS[index % len(KINDS)]
        words, extra, result = _problem(rng, kind)
        listing = " ".join(words)
        prompt = rng.choice(kind.orders).format(words=listing, extra=extra)
        example_split = split_of(f"{kind.name} {extra} {listing}")
        return example_split, free_example(prompt, result, result)

    return draw("instructions", split, count, seed, propose)
