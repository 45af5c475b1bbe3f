"""The nano base: corpus, tokenizer, packaged model and build."""

import json
import random
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from multilora.nano import NANO_DIR, arithmetic, instructions, knowledge, understanding
from multilora.nano.build import MAX_FILE_BYTES, BuildSettings, build, train_tokenizer
from multilora.nano.corpus import MIXTURE, documents, rows

FAMILIES = (instructions, understanding, knowledge, arithmetic)
TINY = BuildSettings(
    vocab=400, tokenizer_documents=200, hidden=32, mlp=64, layers=1, heads=2, row_length=64, batch_rows=4
)
RUNS = (("one", 0), ("two", 0), ("three", 1))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(NANO_DIR)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, multilora.nano.knowledge, multilora.nano.corpus; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_corpus_does_not_contain_the_task_form() -> None:
    texts = list(islice(documents(0), 20_000))
    corpus = "\n\n".join(texts)
    assert corpus.isascii()
    for marker in ("### Instruction", "### Response", "The answer is 1", "What follows? "):
        assert marker not in corpus
    for family in FAMILIES:
        for e in family.examples("eval", 300, 0):
            assert e["prompt"] not in corpus


def test_every_writer_is_in_the_mixture() -> None:
    assert {writer.__module__.rsplit(".", 1)[1] for writer, _ in MIXTURE} == {
        "arithmetic",
        "glossary",
        "instructions",
        "knowledge",
        "stories",
        "sense",
    }


def test_tokenizer_round_trips_every_text(tokenizer) -> None:
    texts = list(islice(documents(7), 2000))
    for family in FAMILIES:
        for e in family.examples("eval", 100, 0):
            texts += [f"### Instruction:\n{e['prompt']}\n\n### Response:\n", e["response"], *e["choices"]]
    texts += ["### Instruction:\nRed  Cat, 1205!\n\n### Response:\n", "Zebra quartz: 99% ~ \t \u00e9"]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert tokenizer(" ", add_special_tokens=False)["input_ids"]


def test_tokenizer_keeps_digits_apart(tokenizer) -> None:
    tokens = tokenizer.tokenize("12 + 345 = 357")
    assert all(sum(character.isdigit() for character in token) <= 1 for token in tokens)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "<s>", "</s>"]
    assert tokenizer.chat_template is None
    assert tokenizer("cat")["input_ids"] == tokenizer("cat", add_special_tokens=False)["input_ids"]


def test_examples_are_short(tokenizer) -> None:
    for family in FAMILIES:
        for e in family.examples("train", 300, 0):
            text = f"### Instruction:\n{e['prompt']}\n\n### Response:\n{e['response']}"
            assert len(tokenizer(text)["input_ids"]) <= 90


def test_rows(tokenizer) -> None:
    ids = rows(tokenizer, 4, 6, 50)
    assert ids.shape == (6, 50)
    assert ids.dtype == torch.int64
    assert ids[0, 0] == tokenizer.bos_token_id
    assert torch.equal(ids, rows(tokenizer, 4, 6, 50))
    assert torch.equal(ids.flatten()[:200], rows(tokenizer, 4, 4, 50).flatten())
    first = next(documents(4))
    assert tokenizer.decode(ids.flatten()).startswith(f"<s>{first}</s><s>")


def test_packaged_model() -> None:
    info = json.loads((NANO_DIR / "build.json").read_text())
    assert (NANO_DIR / "model.safetensors").stat().st_size <= MAX_FILE_BYTES
    model = AutoModelForCausalLM.from_pretrained(NANO_DIR)
    assert model.dtype == torch.bfloat16
    assert sum(p.numel() for p in model.parameters()) == info["parameters"]
    model = model.float().eval()
    tokenizer = AutoTokenizer.from_pretrained(NANO_DIR)
    unseen = rows(tokenizer, 987_654, 24, 256)
    with torch.no_grad():
        loss = model(input_ids=unseen, labels=unseen).loss.item()
    assert abs(loss - info["final_loss"]) < 0.1
    assert loss < 0.5 * info["losses"]["0"]


def test_packaged_tokenizer_is_reproducible_from_build_json(tokenizer) -> None:
    info = json.loads((NANO_DIR / "build.json").read_text())
    retrained = train_tokenizer(info["seed"], BuildSettings(**info["recipe"]))
    assert retrained.get_vocab() == tokenizer.get_vocab()


def test_packaged_model_contains_no_machine_paths() -> None:
    for name in ("build.json", "config.json", "tokenizer_config.json", "README.md"):
        text = (NANO_DIR / name).read_text()
        assert not any(prefix in text for prefix in ("/tmp", "/home", "/work", "/root"))


def test_same_seed_same_weights(tmp_path: Path) -> None:
    state = random.getstate(), torch.get_rng_state()
    infos = [build(tmp_path / name, seed=seed, steps=3, progress=False, settings=TINY) for name, seed in RUNS]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name, _ in RUNS]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]
    assert infos[0]["losses"] == infos[1]["losses"]
    assert infos[0]["tokens_seen"] == 3 * 4 * 64
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        "README.md",
        "build.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three", "two"]


def test_build_replaces_only_a_nano_model(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "kept.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no nano model"):
        build(tmp_path / "notes", steps=1, progress=False, settings=TINY)
    assert (tmp_path / "notes" / "kept.txt").read_text() == "mine"
    build(tmp_path / "model", seed=0, steps=1, progress=False, settings=TINY)
    build(tmp_path / "model", seed=1, steps=1, progress=False, settings=TINY)
    assert json.loads((tmp_path / "model" / "build.json").read_text())["seed"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "notes"]
    with pytest.raises(ValueError, match="steps"):
        build(tmp_path / "none", steps=0, progress=False, settings=TINY)
    assert not (tmp_path / "none").exists()
