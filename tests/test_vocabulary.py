"""A tokenizer fits its model, and adapters that were trained with added tokens load as they were saved."""

from __future__ import annotations

import pytest
import torch
from conftest import make_llama, make_tokenizer, write_jsonl
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

import multilora
import multilora.runs.evaluate
from multilora import MultiLoraConfig
from multilora.errors import AdapterError, InputError
from multilora.runs.candidate import candidate
from multilora.runs.generate import load_text_models
from multilora.vocabulary import check_vocabulary

NEW = ["<one>", "<two>", "<three>"]
ROWS = len(make_tokenizer())  # before they are added


def test_every_token_needs_an_embedding(tmp_path):
    make_llama(vocab_size=280).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    tokenizer = make_tokenizer()
    with pytest.raises(InputError, match=rf"token ids up to {len(tokenizer) - 1}, .* only 280 tokens \(0 to 279\)"):
        check_vocabulary(tokenizer, config)
    config.vocab_size = len(tokenizer)
    check_vocabulary(tokenizer, config)
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(InputError, match=r"without an embedding: '<new>'\."):
        check_vocabulary(tokenizer, config)


def saved_base(folder, **options):
    make_llama(vocab_size=ROWS, **options).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def saved_adapter(folder, base, config):
    """Save a random adapter of a base with added tokens, and its tokenizer; returns the model."""
    tokenizer = make_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer.add_tokens(NEW)
    torch.manual_seed(1)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.5 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


CONFIGS = {
    "resized": lambda: LoraConfig(r=2, target_modules=["q_proj"]),
    "multilora": lambda: MultiLoraConfig(r=2, target_modules=["q_proj"]),
    "trained embeddings": lambda: LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "trained rows": lambda: LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[ROWS, ROWS + 1]),
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_adapters_with_added_tokens(kind, tied, tmp_path):
    base = saved_base(tmp_path / "base", tie_word_embeddings=tied)
    model = saved_adapter(tmp_path / "adapter", base, CONFIGS[kind]())
    loaded = candidate(tmp_path / "adapter", dtype="float32").load().eval()
    ids = torch.tensor([[1, 5, ROWS, ROWS + 2, 7]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert loaded.config.vocab_size == ROWS + 3


@pytest.mark.parametrize("kind", ["resized", "trained embeddings"])
def test_prompts_with_added_tokens(kind, tmp_path):
    """They are tokens of the adapted model; its base reads them as ordinary text."""
    base = saved_base(tmp_path / "base")
    saved_adapter(tmp_path / "adapter", base, CONFIGS[kind]())
    prompt = "yes<two>no"
    before, after = load_text_models(tmp_path / "adapter", compare=True)
    assert ROWS + 1 in after.prompts.ids(prompt)
    assert max(before.prompts.ids(prompt)) < ROWS
    answers = [model.generate([prompt])[0].text for model in (before, after)]
    alone = [multilora.generate(tmp_path / name, [prompt])[0].text for name in ("base", "adapter")]
    assert answers == alone
    assert answers[0] != answers[1]


def test_scores_of_an_adapter_with_added_tokens(tmp_path):
    """They are those of the merged model, whose folder has the tokens."""
    base = saved_base(tmp_path / "base")
    model = saved_adapter(tmp_path / "adapter", base, CONFIGS["resized"]())
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    candidate(tmp_path / "adapter").load_tokenizer().save_pretrained(tmp_path / "merged")
    records = [{"question": f"item{i}<one>", "answer": "<two>"} for i in range(4)]
    paths = {
        key: str(write_jsonl(tmp_path / f"{key}.jsonl", part))
        for key, part in (("path", records[:1]), ("eval_path", records[1:]))
    }
    fields = {"prompt": "{{ question }}", "response": "{{ answer }}"}
    tasks = {
        "tasks": [{"name": "own", **paths, **fields}],
        "data": {"special_tokens": "allow"},
        "evaluation": {"max_new_tokens": 4},
    }
    folders = [tmp_path / "adapter", tmp_path / "merged"]
    of_adapter, of_merged = multilora.runs.evaluate.evaluate_models(folders, tasks, dtype="float32").values()
    assert of_adapter["own"].loss == pytest.approx(of_merged["own"].loss, rel=1e-5)
    assert of_adapter["own"].value == of_merged["own"].value


def test_rows_that_no_file_has(tmp_path):
    base = saved_base(tmp_path / "base")
    # PEFT saves the embedding, which is adapted, and not the output head, which has new rows too.
    saved_adapter(tmp_path / "adapter", base, LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]))
    with pytest.raises(
        AdapterError, match=rf"{ROWS + 3} tokens, and its base has {ROWS}; it has no weights of lm_head"
    ):
        candidate(tmp_path / "adapter").load()


def test_tokens_without_rows(tmp_path):
    """As saved with `save_embedding_layers=False`."""
    base = saved_base(tmp_path / "base")
    saved_adapter(tmp_path / "adapter", base, CONFIGS["resized"]()).save_pretrained(
        tmp_path / "adapter", save_embedding_layers=False
    )
    with pytest.raises(
        InputError, match=rf"adapter: the tokenizer has token ids up to {ROWS + 2}.*save_embedding_layers=True"
    ):
        multilora.generate(tmp_path / "adapter", ["yes"])
