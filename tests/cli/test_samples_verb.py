"""`multilora samples` shows what was asked and answered."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from test_bad_input import run_cli

from multilora.evaluation.samples import Sample, write_samples


def choice(index, prediction, **options):
    return Sample(
        task="even",
        index=index,
        prompt=f"line 0\n{index} [bold]is[/bold] even?\n" + "\n".join(f"hint {k}" for k in range(6)),
        choices=["yes", "no"],
        correct=[0],
        choice_logprobs=[-0.25, -1.5],
        prediction=prediction,
        answer=prediction,
        references=["yes"],
        score=float(prediction == "yes"),
        **options,
    )


@pytest.fixture
def run(tmp_path):
    rows = [choice(0, "yes"), choice(1, "no", truncated=True), choice(2, "yes")]
    rows.append(Sample(task="sum", index=0, prompt="1 + 1", prediction="so\n#### 2", answer="2", references=["2"]))
    write_samples(tmp_path / "samples" / "run.parquet", rows)
    before = [replace(row, prediction="no", answer="no", score=0.0) if row.index == 0 else row for row in rows[:3]]
    write_samples(tmp_path / "samples" / "base.parquet", before)
    return tmp_path


def test_samples_of_a_run(run, monkeypatch, capsys):
    code, out, _ = run_cli(monkeypatch, capsys, "samples", run)
    assert code == 0
    assert "4 of 4 samples" in out
    assert "hint 5" in out
    assert "line 0" not in out  # only the end of a long prompt
    assert "-0.250  yes" in out
    assert "no  (score 0, truncated)" in out
    assert "2  (no score)" in out
    assert "#### 2" in out


def test_only_some_samples(run, monkeypatch, capsys):
    def indices(*options):
        code, out, err = run_cli(monkeypatch, capsys, "samples", run, "--json", *options)
        assert code == 0, err
        return [(row["task"], row["index"]) for row in json.loads(out)]

    assert indices("--wrong") == [("even", 1)]
    assert indices("--task", "sum") == [("sum", 0)]
    assert indices("--limit", "2") == [("even", 0), ("even", 1)]
    assert indices("--flipped", "base") == [("even", 0)]
    assert indices("--flipped", "base", "--wrong") == []
    assert indices("--model", "base", "--wrong") == [("even", 0), ("even", 1)]


def test_wrong_samples_of_an_error_rate(tmp_path, monkeypatch, capsys):
    for name, scores in (("a", [1.0, 1.0, 0.0]), ("b", [0.0, 1.0, 0.0])):
        rows = [
            Sample(task="wer", index=i, prompt=f"{i}", score=s, higher_is_better=False) for i, s in enumerate(scores)
        ]
        write_samples(tmp_path / f"{name}.parquet", rows)
    code, out, _ = run_cli(monkeypatch, capsys, "samples", tmp_path / "a.parquet", "--wrong", "--json")
    assert (code, [row["index"] for row in json.loads(out)]) == (0, [0, 1])
    code, out, _ = run_cli(monkeypatch, capsys, "eval", "--diff", tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert code == 0
    row = next(line for line in out.splitlines() if "wer (lower is better)" in line)
    assert [cell.strip() for cell in row.split("│")][-3:-1] == ["1", "0"]


def test_flipped_samples_and_the_difference(run, monkeypatch, capsys):
    code, out, _ = run_cli(monkeypatch, capsys, "samples", run, "--flipped", run / "samples" / "base.parquet")
    assert code == 0
    assert "+33.3" in out
    assert "no  (score 0)" in out
    assert "sum: 1 without a match, only of this model (index 0)" in out
    assert "1 of 1 samples" in out


def test_generated_text_does_not_control_the_terminal(tmp_path, monkeypatch, capsys):
    answer = "\x1b[2Jone\r\ntwo\x07 [red]é"
    write_samples(tmp_path / "x.parquet", [Sample(task="t", index=0, prompt="p", prediction=answer, answer=answer)])
    code, out, _ = run_cli(monkeypatch, capsys, "samples", tmp_path / "x.parquet")
    assert code == 0
    assert "\\x1b[2Jone\\r\n" + " " * 13 + "two\\x07 [red]é" in out
    assert not set("\x1b\x07\r") & set(out)


def test_errors(run, tmp_path, monkeypatch, capsys):
    for arguments, message in [
        ([tmp_path / "nothing"], "no such file"),
        ([run, "--task", "odd"], "no samples of task 'odd'"),
        ([run, "--model", "best"], "no samples of 'best'; choose one of base, run"),
        ([tmp_path / "samples"], "no samples/ with samples here"),
    ]:
        code, out, err = run_cli(monkeypatch, capsys, "samples", *arguments)
        assert (code, out) == (2, "")
        assert message in err
