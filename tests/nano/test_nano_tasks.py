"""The four generated task families."""

import json
import os
import re
import subprocess
import sys
from types import ModuleType

import pytest

from multilora.example import Example
from multilora.nano import arithmetic, draw, instructions, knowledge, understanding
from multilora.nano.world import ANIMALS, FOODS, RELATIONS, THINGS, fact_base

FAMILIES = {
    "instructions": instructions,
    "understanding": understanding,
    "knowledge": knowledge,
    "arithmetic": arithmetic,
}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())

DUMP = """
import hashlib, random
from itertools import islice
from multilora.example import Example
from multilora.nano import arithmetic, corpus, instructions, knowledge, understanding
families = (instructions, understanding, knowledge, arithmetic)
generated = [family.examples(split, 60, 3) for family in families for split in ("train", "eval")]
generated += list(islice(corpus.documents(3), 300))
print(hashlib.sha256(repr(generated).encode()).hexdigest())
"""


def test_text_does_not_depend_on_the_hash_seed() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", DUMP],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "77")
    }
    assert len(digests) == 1
    assert re.fullmatch(r"[0-9a-f]{64}\n", digests.pop())


@each_family
def test_the_seed_determines_the_examples(family: ModuleType) -> None:
    assert family.examples("train", 50, 5) == family.examples("train", 50, 5)
    assert family.examples("train", 50, 5) != family.examples("train", 50, 6)


@each_family
def test_prompts_are_distinct_and_splits_are_disjoint(family: ModuleType) -> None:
    train = [e["prompt"] for e in family.examples("train", 4000, 0)]
    held_out = [e["prompt"] for seed in (0, 1) for e in family.examples("eval", 1000, seed)]
    assert len(set(train)) == len(train)
    assert len(set(held_out[:1000])) == 1000
    assert not set(train) & set(held_out)


@each_family
def test_examples_are_well_formed(family: ModuleType) -> None:
    for split in ("train", "eval"):
        for e in family.examples(split, 400, 1):
            assert set(e) == set(Example.__annotations__)
            assert (e["prompt"] + e["response"]).isascii()
            assert e["prompt"] == e["prompt"].strip()
            assert e["response"] == e["response"].strip() != ""
            if e["choices"]:
                assert e["choices"][e["correct"][0]] == e["response"] == e["answer"]
                assert len(set(e["choices"])) == len(e["choices"])
            else:
                assert e["correct"] == []
                assert e["answer"] in e["response"]


@each_family
def test_too_many_examples_are_rejected_with_the_available_count(family: ModuleType) -> None:
    for split, available in draw.AVAILABLE.items():
        with pytest.raises(ValueError, match=str(available)):
            family.examples(split, available + 1, 0)
    with pytest.raises(ValueError, match="test"):
        family.examples("test", 1, 0)
    assert len(family.examples("eval", draw.AVAILABLE["eval"], 0)) == draw.AVAILABLE["eval"]


@pytest.mark.parametrize(("family", "choices"), [(understanding, 2), (knowledge, 4)])
def test_correct_choices_are_balanced(family: ModuleType, choices: int) -> None:
    correct = [e["correct"][0] for e in family.examples("eval", 400, 2)]
    assert [correct.count(index) for index in range(choices)] == [400 // choices] * choices


def test_arithmetic_answers_follow_from_the_prompt() -> None:
    losses = ("loses", "sells", "gives away", "drops", "throws away")
    lengths = set()
    for e in arithmetic.examples("eval", 400, 0):
        boxes = re.search(r"has (\d+) boxes with (\d+) ", e["prompt"])
        amount = int(boxes[1]) * int(boxes[2]) if boxes else int(re.search(r"has (\d+)", e["prompt"])[1])
        for sentence in e["prompt"].split(". ")[1:]:
            for number in re.findall(r"\d+", sentence):
                amount += int(number) * (-1 if any(word in sentence for word in losses) else 1)
        *steps, last = e["response"].split(". ")
        assert last == f"The answer is {amount}."
        assert e["answer"] == str(amount)
        assert 0 <= amount <= arithmetic.LARGEST
        lengths.add(len(steps))
        for step in steps:
            left, operator, right, result = re.fullmatch(r"(\d+) ([-+*]) (\d+) = (\d+)", step).groups()
            a, b = int(left), int(right)
            assert int(result) == {"+": a + b, "-": a - b, "*": a * b}[operator]
    assert lengths == {1, 2, 3}


def test_instruction_results() -> None:
    results = {kind.name: kind.apply(["red", "cat", "egg", "pink"], "colours") for kind in instructions.KINDS}
    assert results == {
        "reverse": ["pink", "egg", "cat", "red"],
        "sort": ["cat", "egg", "pink", "red"],
        "first": ["red"],
        "last": ["pink"],
        "swap": ["pink", "cat", "egg", "red"],
        "double": ["red", "red", "cat", "cat", "egg", "egg", "pink", "pink"],
        "capitals": ["RED", "CAT", "EGG", "PINK"],
        "count": ["four"],
        "without": ["cat", "egg"],
        "only": ["red", "pink"],
    }


def test_instruction_responses_use_the_words_of_the_prompt() -> None:
    for e in instructions.examples("eval", 400, 0):
        listing = re.split(r"[:?] ", e["prompt"])[1].split()
        words = e["response"].lower().split()
        assert set(words) <= set(listing) or words[0] in ("two", "three", "four", "five", "six", "seven")


OPPOSITES = {"open": "shut", "full": "empty", "wet": "dry", "clean": "dirty", "light": "dark", "warm": "cold"}
SORTS = {"an animal": ANIMALS, "something to eat": FOODS, "a thing": THINGS}


def _follows(passage: str, statement: str) -> bool:
    """Decide independently, from the words of passage and statement."""
    if "more than" in statement:
        return int(re.findall(r"\d+", passage)[0]) > int(re.findall(r"\d+", statement)[0])
    for sort, words in SORTS.items():
        if statement.endswith(sort):
            return passage.rstrip(".").rsplit(" ", 1)[1] in words
    actual, stated = passage.rstrip(".").rsplit(" ", 1)[1], statement.rsplit(" ", 1)[1]
    assert actual == stated or (actual, stated) in OPPOSITES.items() or (stated, actual) in OPPOSITES.items()
    return actual == stated


def _passage_and_statement(prompt: str) -> tuple[str, str]:
    pattern = r"(?:Read this: )?(.*\.) (?:Does it follow|Is it true|Can we conclude) that (.*)\? Answer yes or no\."
    match = re.fullmatch(pattern, prompt)
    assert match is not None
    return match[1], match[2]


def test_understanding_answers_follow_from_the_passage() -> None:
    for e in understanding.examples("eval", 400, 0):
        assert e["answer"] == ("yes" if _follows(*_passage_and_statement(e["prompt"])) else "no")


def test_the_statement_alone_does_not_reveal_the_answer() -> None:
    """The best guess from the number or the last word of a statement is close to chance."""
    answers: dict[str, list[int]] = {}
    for e in understanding.examples("train", 8000, 0):
        statement = _passage_and_statement(e["prompt"])[1]
        cue = (re.findall(r"\d+", statement) or [statement.rsplit(" ", 1)[1]])[0]
        answers.setdefault(cue, []).append(e["correct"][0])
    correct = sum(max(indices.count(0), indices.count(1)) for indices in answers.values())
    assert correct / 8000 < 0.54


def test_knowledge_choices_are_the_towns_of_the_person() -> None:
    people = {person.name: person for person in fact_base()}
    relations = {"birth": "born", "resid": "home", "work": "work", "employ": "work", "educat": "school"}
    for e in knowledge.examples("train", 400, 0):
        person = people[re.search(r"[A-Z][a-z]+ [A-Z][a-z]+(?=[ ?])", e["prompt"].split(" ", 1)[1])[0]]
        relation = next(relation for word, relation in relations.items() if word in e["prompt"])
        assert sorted(e["choices"]) == sorted(person.towns)
        assert e["answer"] == person.town(relation)
        assert ", ".join(e["choices"]) in e["prompt"]


def test_people_of_the_eval_split_are_not_in_train_prompts() -> None:
    held_out = {person.last for person in knowledge.people("eval")}
    assert len(held_out) == knowledge.EVAL_PEOPLE
    for e in knowledge.examples("train", 5000, 0):
        assert not held_out & set(re.findall(r"\w+", e["prompt"]))


def test_fact_base() -> None:
    people = fact_base()
    assert people == fact_base(0)
    assert people != fact_base(1)
    assert len({person.last for person in people}) == len(people)
    assert all(len(set(person.towns)) == len(RELATIONS) for person in people)
    with pytest.raises(ValueError, match="people can be made"):
        fact_base(0, 10_000)


def test_every_person_is_in_the_pretraining_text() -> None:
    import random

    rng = random.Random(0)
    text = "\n".join(knowledge.pretraining_text(rng) for _ in range(3000))
    for person in fact_base():
        assert person.name in text


def test_examples_round_trip_through_json() -> None:
    examples = [e for family in FAMILIES.values() for e in family.examples("eval", 5, 0)]
    assert json.loads(json.dumps(examples)) == examples
