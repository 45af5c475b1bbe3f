"""Questions with lettered choices, answered by a letter, as in MMLU, ARC, OpenBookQA and your own questions."""

from __future__ import annotations

from string import ascii_uppercase

from multilora.errors import RecordError
from multilora.example import Example, choice_example


def lettered_example(
    question: str, choices: list[str], correct: int, where: str, *, head: str = "", group: str = ""
) -> Example:
    """A question in the prompt format of MMLU's own evaluation (Hendrycks et al. 2021, section 4 and figure 1).

    The prompt is `head`, the question, a line `A. text` for each choice, and `Answer:`; the response is the letter.

    Args:
        question: may have several lines
        choices: 2 to 26 texts
        correct: index of the correct choice
        where: file and line, for errors
        head: a paragraph above the question, or empty
        group: see `Example`

    Raises:
        RecordError: too few or too many choices, or `correct` is out of range.
    """
    if not 2 <= len(choices) <= len(ascii_uppercase):
        raise RecordError(
            f"{where}: {len(choices)} choice(s) {choices!r}, expected 2 to {len(ascii_uppercase)}; fix the record",
            "number of choices",
        )
    if not question.strip():
        raise RecordError(f"{where}: the question is empty; fix or remove the record", "empty question")
    letters = list(ascii_uppercase[: len(choices)])
    lines = [f"{letter}. {text}" for letter, text in zip(letters, choices, strict=True)]
    paragraphs = f"{head}\n\n" if head else ""
    prompt = "\n".join([f"{paragraphs}{question}", *lines, "Answer:"])
    return choice_example(prompt, letters, correct, group=group)
