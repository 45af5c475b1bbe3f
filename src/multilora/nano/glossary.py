"""Explanations of the words that occur in the tasks but in no other pretraining text.

Without them these words would be untrained tokens, which adapters with frozen embeddings cannot use.
"""

import random

ENTRIES = (
    "An instruction is a text that says what to do.",
    "Instruction and response belong together.",
    "A response is a text that comes back.",
    "Response is a longer word than answer.",
    "The answer is what a question asks for.",
    "The answer is given by a person who was asked.",
    "A question may begin with how many, what number, which, what, where, does or is.",
    "What and Which and How and Where begin a question.",
    "A birthplace is a place of birth.",
    "The place of residence is where people reside.",
    "To reside is to dwell.",
    "A workplace is where people are employed.",
    "Who is employed has an employer.",
    "Who is educated has had an education.",
    "Where there is education people are educated.",
    "Options are offers to choose from.",
    "Choose one of many options.",
    "To conclude is to find what follows.",
    "What follows from this? What follows is what we read.",
    "What can we conclude? We can conclude what follows.",
    "Is it so? It is so. Is it one or the other? Who is it? Who knows.",
    "Read this and read that.",
    "A word may be a name. Name a word, give a word, say a word.",
    "Write words, write a list, write only a word, write just a word.",
    "Give a list of words, put words in a list, arrange words in a list.",
    "To sort is to arrange. To reverse is to turn around.",
    "Sort, reverse, swap, exchange, repeat, double, count, remove, drop, keep, pick and select are verbs.",
    "Reverse and Sort and Arrange and Swap and Exchange may begin a line.",
    "Repeat and Double and Count and Remove and Drop may begin a line.",
    "Keep and Pick and Select and Leave and Turn may begin a line.",
    "Write and Give and Put and Name and Add and Let and Say and Use may begin a line.",
    "To remove is to leave out. To keep is to select. To pick is to pick out.",
    "The opening word opens and the closing word closes.",
    "One word comes first and another word comes last.",
    "An echo comes after a sound. Repeat it twice and it is heard two times.",
    "Capital letters are large letters. A sign is in capitals.",
    "How long is a list? As long as its number of words.",
    "How many are there in the end? What is left is what there is now.",
    "People who have something have it. What is left is with them.",
)


def pretraining_text(rng: random.Random) -> str:
    """Write one document: a few entries in random order."""
    return "### Glossary:\n" + "\n".join(rng.sample(ENTRIES, rng.randint(2, 5)))
