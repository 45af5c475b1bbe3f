"""Questions with lettered choices, answered by a letter: what MMLU, ARC, OpenBookQA and one's own questions share."""

from __future__ import annotations

from string import ascii_uppercase

from multilora.errors import RecordError
from multilora.example import Example, choice_example


def lettered_example(
    question: str, choices: list[str], label: int, where: str, *, head: str = "", group: str = ""
) -> Example:
    """A question in the layout of MMLU's own evaluation (Hendrycks et al. 2021, section 4 and figure 1).

    The prompt is `head`, the question, a line `A. text` per choice and `Answer:`; the response is the letter.

    Args:
        question: may have several lines
        choices: texts, 2 to 26
        label: place of the right one, from 0
        where: for messages
        head: a paragraph above the question, or empty
        group: see `Example`

    Raises:
        RecordError: too few or too many choices, or a label outside them.
    """
    if not 2 <= len(choices) <= len(ascii_uppercase):
        raise RecordError(
            f"{where}: {len(choices)} choice(s) {choices!r}, expected 2 to {len(ascii_uppercase)}; mend the record",
            "number of choices",
        )
    if not question.strip():
        raise RecordError(f"{where}: the question is empty; mend or remove the record", "empty question")
    letters = list(ascii_uppercase[: len(choices)])
    lines = [f"{letter}. {text}" for letter, text in zip(letters, choices, strict=True)]
    paragraphs = f"{head}\n\n" if head else ""
    prompt = "\n".join([f"{paragraphs}{question}", *lines, "Answer:"])
    return choice_example(prompt, letters, label, group=group)
