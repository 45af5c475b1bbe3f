"""The typer application and its commands."""

from __future__ import annotations

import typer

from multilora.cli import (
    analyze,
    chat,
    demo,
    doctor,
    estimate,
    evaluate,
    export,
    generate,
    init,
    nano,
    plan,
    prune,
    report,
    samples,
    schema,
    servers,
    study,
    tasks,
    train,
)

app = typer.Typer(
    name="multilora",
    help="Multi-task fine-tuning with MultiLoRA: data mixture, training, evaluation, analysis and export.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("init")(init.init)
app.command("plan")(plan.plan)
app.command("estimate")(estimate.estimate)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("samples")(samples.samples)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("analyze")(analyze.analyze)
app.command("report")(report.report)
app.command("export")(export.export)
app.command("servers")(servers.servers)
app.command("prune")(prune.prune)
app.command("study")(study.study)
app.command("tasks")(tasks.tasks)
app.command("schema")(schema.schema)
app.command("doctor")(doctor.doctor)
app.add_typer(nano.app, name="nano")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    debug: bool = typer.Option(
        False, "--debug", help="Print the traceback of an error, and what other libraries say; works anywhere."
    ),
    quiet: bool = typer.Option(False, "--quiet", help="Print only results and errors; works anywhere on the line."),
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    """Fine-tune one language model on many tasks."""
    if version:
        from multilora import __version__

        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise typer.Exit
