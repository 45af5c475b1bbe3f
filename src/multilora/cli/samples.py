"""`multilora samples`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from multilora.cli.options import AsJson

if TYPE_CHECKING:
    from rich.console import Console

    from multilora.evaluation.samples import Sample
    from multilora.evaluation.statistics.paired import ComparedSamples

Source = Annotated[str, typer.Argument(metavar="FILE|RUN", help="File of samples, or directory of an evaluated run.")]
Tasks = Annotated[list[str] | None, typer.Option("--task", metavar="NAME", help="Only this task; repeatable.")]
Wrong = Annotated[bool, typer.Option("--wrong", help="Only samples that are not entirely right.")]
Flipped = Annotated[
    str | None,
    typer.Option(
        "--flipped", metavar="OTHER", help="Only samples with another score in OTHER: a file, a run or a model of RUN."
    ),
]
Model = Annotated[str | None, typer.Option("--model", metavar="LABEL", help="Model of RUN; by default not `base`.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="Maximum number of samples.")]
PROMPT_LINES = 6
RULE = 80


def samples(
    source: Source,
    task: Tasks = None,
    wrong: Wrong = False,
    flipped: Flipped = None,
    model: Model = None,
    limit: Limit = 10,
    json: AsJson = False,
) -> None:
    """Show the examples of an evaluation with the model's answers and their scores."""
    from dataclasses import asdict

    from multilora.cli.show import console, show_json
    from multilora.evaluation.samples import find_other_samples, find_samples, read_samples
    from multilora.evaluation.statistics.paired import compare_samples, matching_samples

    path = find_samples(source, model)
    rows = read_samples(path, task)
    before: list[Sample | None] = [None] * len(rows)
    comparison = None
    if flipped is not None:
        other = find_other_samples(source, flipped)
        comparison = compare_samples(other, path, task)
        pairs = [(a, b) for a, b in matching_samples(read_samples(other), rows) if a.item_score != b.item_score]
        before, rows = [a for a, _ in pairs], [b for _, b in pairs]
    shown = [(old, new) for old, new in zip(before, rows, strict=True) if not wrong or new.is_wrong]
    if json:
        show_json([asdict(new) for _, new in shown[:limit]])
        return
    if comparison is not None:
        _show_comparison(comparison)
    out = console()
    for old, new in shown[:limit]:
        _show_sample(out, old, new)
    print(f"{min(limit, len(shown)):,} of {len(shown):,} samples")


def _show_comparison(comparison: ComparedSamples) -> None:
    from multilora.cli.show import table

    columns = ["task", "n", "difference", "95 % interval", "p", "better", "worse"]
    rows = [
        [
            name if task.higher_is_better else f"{name} (lower is better)",
            f"{task.n:,}",
            f"{100 * task.difference:+.1f}",
            f"{100 * task.low:+.1f} to {100 * task.high:+.1f}",
            f"{task.p_value:.2g}",
            f"{task.flipped_up:,}",
            f"{task.flipped_down:,}",
        ]
        for name, task in comparison.tasks.items()
    ]
    table("difference from the other model, in percent", columns, rows)
    for name in comparison.unscored:
        print(f"{name}: its samples have no score of their own")
    for where, missing in (("this model", comparison.only_second), ("the other model", comparison.only_first)):
        for name, indices in missing.items():
            few = ", ".join(map(str, indices[:5])) + (", ..." if len(indices) > 5 else "")
            print(f"{name}: {len(indices):,} without a match, only of {where} (index {few})")


def _show_sample(out: Console, before: Sample | None, sample: Sample) -> None:
    from rich.rule import Rule
    from rich.text import Text

    from multilora.cli.show import escaped

    def line(label: str, text: str, style: str = "") -> None:
        indented = ("\n" + " " * 13).join(escaped(text).split("\n"))
        out.print(Text.assemble((f"{label:>11}  ", "bold"), (indented, style)), soft_wrap=True)

    def score(item: Sample) -> str:
        return "no score" if item.item_score is None else f"score {item.item_score:.3g}"

    out.print(Rule(Text(escaped(f"{sample.task} {sample.index}")), align="left"), width=min(out.width, RULE))
    lines = sample.prompt.splitlines()
    omitted = ["..."] if len(lines) > PROMPT_LINES else []
    line("prompt", "\n".join(omitted + lines[-PROMPT_LINES:]))
    for index, choice in enumerate(sample.choices):
        logprob = f"{sample.choice_logprobs[index]:9.3f}" if index < len(sample.choice_logprobs) else ""
        style = "green" if index in sample.correct else ""
        line("correct" if index in sample.correct else "", f"{logprob}  {choice}", style)
    if not sample.choices:
        line("reference", " | ".join(sample.references), "green")
    if before is not None:
        line("other", f"{before.answer}  ({score(before)})")
    if sample.prediction != sample.answer:
        line("generated", sample.prediction)
    style = "" if sample.item_score is None else "red" if sample.is_wrong else "green"
    line("answer", f"{sample.answer}  ({score(sample)}{', truncated' if sample.truncated else ''})", style)
