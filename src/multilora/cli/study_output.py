"""The results of a study on stdout."""

from __future__ import annotations

from pathlib import Path

from multilora.cli.show import say, show_json, table


def show_results(folder: Path, *, as_json: bool) -> None:
    """Print the tables of methods and differences, and the notes; or everything as JSON."""
    from multilora.study.stored import read_results
    from multilora.study.tables import RESULTS, difference_table, method_table

    results = read_results(folder)
    if as_json:
        show_json(results)
        return
    table(
        "mean ± standard deviation over seeds, on the evaluation split; scores in percent, losses in nats per token",
        *method_table(results),
    )
    if results["differences"]:
        print()
        table(
            f"differences to {results['reference']} with 95 % intervals; p adjusted for the number of methods (Holm)",
            *difference_table(results),
        )
    for note in results["notes"]:
        say(f"note: {note}", indent=2)
    say(f"tables: {folder / RESULTS}")
    say(f"report: {folder / 'report.html'}")
