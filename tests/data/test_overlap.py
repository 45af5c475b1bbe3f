"""Evaluation prompts that are also trained on are counted."""

from __future__ import annotations

import json

import pytest
from conftest import write_jsonl

from multilora.cli import main
from multilora.data.overlap import Overlap, normalize, overlap
from multilora.recipe import TaskSection


def section(path, eval_path=None, name="mine", **keys):
    keys = keys or {"prompt": "{{ q }}", "response": "{{ a }}"}
    return TaskSection(name=name, path=str(path), eval_path=str(eval_path) if eval_path else None, **keys)


def test_exact_and_normalized_prompts_are_counted_over_all_tasks(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", [{"q": f"Question {i}?", "a": "a"} for i in range(2500)])
    rows = [{"q": "Question 7?", "a": "b"}, {"q": "question 8 !", "a": "b"}, {"q": "new", "a": "b"}]
    held = write_jsonl(tmp_path / "held.jsonl", rows)
    other = write_jsonl(tmp_path / "other.jsonl", [{"q": "NEW.", "a": "a"}])
    assert overlap([section(train, held)]) == {"mine": Overlap(3, 1, 2)}
    both = overlap([section(train, held), section(other, held, name="other")])
    assert both["mine"] == both["other"] == Overlap(3, 1, 3)


def test_a_held_out_fraction_has_none(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": f"q{i // 2}", "a": "a"} for i in range(400)])
    assert overlap([section(path)])["mine"].exact == 0


def test_chats_are_compared_by_their_messages(tmp_path):
    chats = [{"m": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "x"}]} for i in range(5)]
    train, held = write_jsonl(tmp_path / "train.jsonl", chats), write_jsonl(tmp_path / "held.jsonl", chats[:2])
    assert overlap([section(train, held, messages="m")])["mine"] == Overlap(2, 2, 2)


def test_normalization():
    assert normalize("  It's   a\nTest_case! ") == "it s a test case"


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_plan_reports_it(flag, recipe, tmp_path, monkeypatch, capsys):
    recipe["tasks"][1]["eval_path"] = str(
        write_jsonl(tmp_path / "held.jsonl", [{"word": "item3", "twice": "item3 item3"}, {"word": "z", "twice": "z"}])
    )
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    monkeypatch.setattr("sys.argv", ["multilora", "plan", str(tmp_path / "r.yaml"), "--no-measure", *flag])
    with pytest.raises(SystemExit):
        main()
    out = capsys.readouterr().out
    if flag:
        assert json.loads(out)["overlap"]["echo"] == {"evaluation": 2, "exact": 1, "normalized": 1}
    else:
        assert "echo: 1 of 2 evaluation prompts are also training prompts" in out
        assert "even: 0 of" not in out


def test_evaluation_data_that_cannot_be_used_are_refused_before_training(recipe, tmp_path):
    import multilora

    held = write_jsonl(tmp_path / "held.jsonl", [{"word": "z"}])
    recipe["tasks"][1]["eval_path"] = str(held)
    for function in (multilora.train, multilora.plan):
        with pytest.raises(ValueError, match=r"held.jsonl, line 1: the response template: 'twice' is undefined"):
            function(recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["training.max_steps=1000000000000000000", "mixture.total_tokens=1000000000000000"])
@pytest.mark.parametrize("packing", ["true", "false"])
def test_a_plan_that_no_machine_could_hold_is_refused_at_once(option, packing, recipe):
    import multilora

    if option.startswith("mixture"):
        del recipe["training"]["max_steps"]
    with pytest.raises(ValueError, match=r"the plan would hold about .* examples, at most 100,000,000"):
        multilora.plan(recipe, [option, f"data.packing={packing}"])
