"""`multilora generate`, `multilora chat` and `multilora servers`: texts on stdout, notes on stderr."""

from __future__ import annotations

import io
import json

import pytest
from conftest import make_llama, make_tokenizer, write_jsonl
from peft import LoraConfig, get_peft_model
from test_bad_input import run_cli

import multilora


@pytest.fixture(scope="module")
def lora(model_folder, tmp_path_factory):
    """A stock LoRA of the tiny base that changes what it says."""
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    model = get_peft_model(make_llama(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model.peft_config["default"].base_model_name_or_path = str(model_folder)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def run(recipe):
    return multilora.train(recipe).path


def texts_of(model, prompts, **options):
    return [answer.text for answer in multilora.generate(model, prompts, max_new_tokens=5, **options)]


LIMIT = ["--max-new-tokens", "5"]


def test_one_prompt_prints_its_text_only(lora, monkeypatch, capsys):
    code, out, err = run_cli(monkeypatch, capsys, "generate", lora, "--prompt", "yes", *LIMIT)
    assert (code, out) == (0, texts_of(lora, ["yes"])[0] + "\n")
    assert "device cpu, dtype float32, prompts raw" in err
    assert "1 of 1 answers reached their maximum length" in err


def test_several_prompts(lora, tmp_path, monkeypatch, capsys):
    (tmp_path / "p.txt").write_text("two\n\nthree\n")
    arguments = ["generate", lora, "-p", "one", "--file", tmp_path / "p.txt", *LIMIT]
    texts = texts_of(lora, ["one", "two", "three"])
    code, out, _ = run_cli(monkeypatch, capsys, *arguments)
    assert (code, out) == (0, f"> one\n{texts[0]}\n\n> two\n{texts[1]}\n\n> three\n{texts[2]}\n")
    code, out, _ = run_cli(monkeypatch, capsys, *arguments, "--compare", "--json")
    answers = json.loads(out)
    assert [answer["text"] for answer in answers] == texts_of(lora, ["one", "two", "three"], compare=True)
    assert [answer["model"] for answer in answers] == ["base"] * 3 + [str(lora)] * 3
    code, out, _ = run_cli(monkeypatch, capsys, *arguments[:4], *LIMIT, "--compare")
    before, after = texts_of(lora, ["one"], compare=True)
    assert out == f"> one\n[base]\n{before}\n[adapter]\n{after}\n"


def test_prompts_of_a_task(run, tmp_path, monkeypatch, capsys):
    file = write_jsonl(tmp_path / "p.jsonl", [{"word": "b"}])
    code, out, _ = run_cli(
        monkeypatch, capsys, "generate", run, "--task", "echo", "-p", '{"word": "a"}', "--file", file, "--json", *LIMIT
    )
    assert code == 0
    assert [answer["prompt"] for answer in json.loads(out)] == ["say a twice", "say b twice"]


def test_wrong_input(lora, run, model_folder, monkeypatch, capsys):
    for arguments, message in (
        (["generate", lora], "there is nothing to answer"),
        (["generate", lora, "-p", "a", "--task", "echo"], "is not a run, so it has no tasks"),
        (["generate", run, "-p", "{}", "--task", "nothing"], "no task 'nothing'"),
        (["generate", run, "-p", "a", "--dtype", "float16"], "whose dtype is that of its recipe"),
        (["generate", "./nowhere", "-p", "a"], "does not exist"),
        (["generate", lora, "-p", "a", "--top-k", "5"], "no effect with temperature 0"),
        (["generate", lora, "-p", "a", "--template", "chat"], "has no chat template"),
        (["generate", model_folder, "-p", "a", "--compare"], "no base to compare it with"),
        (["chat", "./nowhere"], "does not exist"),
        (["servers", run], "export it (multilora export"),
    ):
        code, out, err = run_cli(monkeypatch, capsys, *arguments)
        assert (code, out) == (2, ""), arguments
        assert message in err


def say(monkeypatch, capsys, lines, *arguments):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
    code, out, err = run_cli(monkeypatch, capsys, "chat", *arguments, *LIMIT)
    assert code == 0, err
    return out, err


def test_chat(run, monkeypatch, capsys):
    out, err = say(monkeypatch, capsys, ["yes", "no", "/reset", "yes", "/unknown", "/exit", "not read"], run, "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [len(answer["prompt"]) for answer in answers] == [1, 3, 1]
    assert answers[0] == answers[2]
    assert "unknown command '/unknown'" in err
    out, _ = say(monkeypatch, capsys, ["yes", "/help"], run)
    assert out.startswith(answers[0]["text"] + "\n")
    assert "/reset  start a new conversation" in out


def test_a_chat_of_raw_text_has_no_turns(lora, monkeypatch, capsys):
    out, err = say(monkeypatch, capsys, ["yes", "no"], lora, "--compare")
    assert "raw text has no turns" in err
    parts = [texts_of(lora, [text], compare=True) for text in ("yes", "no")]
    assert out == "".join(f"[base]\n{before}\n[adapter]\n{after}\n" for before, after in parts)


def test_a_text_that_is_too_long_does_not_end_the_chat(run, monkeypatch, capsys):
    out, err = say(monkeypatch, capsys, ["one " * 300, "yes"], run)
    assert "256 positions" in err
    assert len(out.splitlines()) >= 1


def test_servers(lora, run, model_folder, tmp_path, monkeypatch, capsys):
    def consumers(path):
        code, out, err = run_cli(monkeypatch, capsys, "servers", path, "--json")
        assert code == 0, err
        return {item["consumer"]: item["commands"] for item in json.loads(out)}

    assert consumers(lora)["vLLM"] == [f"vllm serve {model_folder} --enable-lora --lora-modules adapter={lora}"]
    assert consumers(model_folder)["vLLM"] == [f"vllm serve {model_folder}"]
    assert consumers(model_folder)["transformers serve"] == [f"transformers serve {model_folder}"]
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert consumers(tmp_path / "x.gguf")["llama.cpp"][1].endswith(f"--lora {tmp_path / 'x.gguf'}")
    code, out, _ = run_cli(monkeypatch, capsys, "servers", lora)
    assert code == 0
    assert "vLLM" in out
