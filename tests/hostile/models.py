"""Damaged base models: config, weights or tokenizer that are missing, broken, or of another model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from harness import Case, Row
from runs import become_folder, become_list, edit_json, edit_weights, empty, garbage, name_of, remove, truncate

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


def _drop_layer(tensors: dict[str, Any]) -> None:
    for name in [name for name in tensors if ".layers.1." in name]:
        del tensors[name]


def _drop_embeddings(tensors: dict[str, Any]) -> None:
    del tensors["model.embed_tokens.weight"]


def _other_shape(tensors: dict[str, Any]) -> None:
    tensors["model.layers.0.mlp.down_proj.weight"] = tensors["model.layers.0.mlp.down_proj.weight"][:7].clone()


def _one_nan(tensors: dict[str, Any]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")


def _all_inf(tensors: dict[str, Any]) -> None:
    tensors["model.layers.0.self_attn.q_proj.weight"].fill_(float("inf"))


def _no_tensors(tensors: dict[str, Any]) -> None:
    tensors.clear()


def _other_names(tensors: dict[str, Any]) -> None:
    for name in list(tensors):
        tensors[f"other.{name}"] = tensors.pop(name)


def _no_tokenizer(base: Path) -> None:
    for path in base.glob("*token*"):
        path.unlink()


def _larger_tokenizer(base: Path) -> None:
    from conftest import make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"[word{number}]" for number in range(200)])
    tokenizer.save_pretrained(base)


def _no_eos(base: Path) -> None:
    from conftest import make_tokenizer

    _no_tokenizer(base)
    make_tokenizer(pad_token="<pad>").save_pretrained(base)


def _bert(base: Path) -> None:
    from transformers import BertConfig, BertModel

    (base / WEIGHTS).unlink()
    config = BertConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(base)


def _t5(base: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    (base / WEIGHTS).unlink()
    (base / "generation_config.json").unlink()
    config = T5Config(vocab_size=320, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(base)


def _empty_folder(base: Path) -> None:
    shutil.rmtree(base)
    base.mkdir()


def _a_file(base: Path) -> None:
    shutil.rmtree(base)
    base.write_text("weights")


def _dead_index(base: Path) -> None:
    (base / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))


# (file of the base, damage, what the message says)
FILES: list[tuple[str, Callable[[Path], None], str]] = [
    ("", remove, "model.name_or_path: no folder"),
    ("", _a_file, "model.name_or_path: no folder"),
    ("", _empty_folder, "model.name_or_path: cannot load"),
    ("", _no_tokenizer, "model.name_or_path: cannot load"),
    ("", _larger_tokenizer, "the tokenizer has token ids up to 516, and the model embeds only 320 tokens"),
    ("", _no_eos, "the tokenizer has no eos_token to end a response with"),
    ("", _bert, "is an encoder (bert with is_decoder: false)"),
    ("", _t5, "Unrecognized configuration class"),
    ("", _dead_index, "model-00001-of-00001.safetensors"),
    (CONFIG, remove, "model.name_or_path: cannot load"),
    (CONFIG, empty, "model.name_or_path: cannot load"),
    (CONFIG, truncate, "model.name_or_path: cannot load"),
    (CONFIG, garbage, "model.name_or_path: cannot load"),
    (CONFIG, become_list, "model.name_or_path: cannot load"),
    (CONFIG, become_folder, "model.name_or_path: cannot load"),
    (CONFIG, partial(edit_json, model_type="nothing"), "model.name_or_path: cannot load"),
    (CONFIG, partial(edit_json, model_type=None), "model.name_or_path: cannot load"),
    (CONFIG, partial(edit_json, hidden_size=0), "hidden_size is 0, expected at least 1"),
    (CONFIG, partial(edit_json, hidden_size=-32), "hidden_size is -32, expected at least 1"),
    (CONFIG, partial(edit_json, hidden_size="32"), "Field 'hidden_size' expected int, got str"),
    (CONFIG, partial(edit_json, hidden_size=[32]), "Field 'hidden_size' expected int, got list"),
    (CONFIG, partial(edit_json, hidden_size=None), "Field 'hidden_size' expected int, got NoneType"),
    (CONFIG, partial(edit_json, num_attention_heads=-4), "num_attention_heads is -4, expected at least 1"),
    (CONFIG, partial(edit_json, num_attention_heads=0), "model.name_or_path: cannot load"),
    (CONFIG, partial(edit_json, num_key_value_heads=-1), "model.name_or_path: cannot load"),
    (CONFIG, partial(edit_json, intermediate_size=-1), "model.name_or_path: cannot load"),
    (CONFIG, partial(edit_json, hidden_act="nothing"), "model.name_or_path: cannot load"),
    (CONFIG, partial(edit_json, rms_norm_eps="small"), "Field 'rms_norm_eps' expected float, got str"),
    (CONFIG, partial(edit_json, rope_parameters=[1]), "Validation error for field 'rope_parameters'"),
    (CONFIG, partial(edit_json, eos_token_id="</s>"), "Validation error for field 'eos_token_id'"),
    (CONFIG, partial(edit_json, num_hidden_layers=-1), "num_hidden_layers is -1, expected at least 1"),
    (CONFIG, partial(edit_json, num_hidden_layers=1), "layers that its config leaves out (model.layers.1)"),
    (CONFIG, partial(edit_json, hidden_size=64), "has 21 weights in another shape than its config"),
    (CONFIG, partial(edit_json, num_hidden_layers=3), "lacks 9 weights of LlamaForCausalLM"),
    (CONFIG, partial(edit_json, vocab_size=100), "the model embeds only 100 tokens"),
    (CONFIG, partial(edit_json, vocab_size=10**6), "has 2 weights in another shape than its config"),
    (CONFIG, partial(edit_json, vocab_size=318), "has 2 weights in another shape than its config"),
    (CONFIG, partial(edit_json, vocab_size=-1), "vocab_size is -1, expected at least 1"),
    (CONFIG, partial(edit_json, max_position_embeddings=-1), "max_position_embeddings is -1, expected at least 1"),
    (CONFIG, partial(edit_json, max_position_embeddings=0), "max_position_embeddings is 0, expected at least 1"),
    (CONFIG, partial(edit_json, max_position_embeddings=16), "data.max_length: 128 is more than the 16 positions"),
    (WEIGHTS, remove, "model.name_or_path: cannot load"),
    (WEIGHTS, empty, "/base' (model.safetensors: "),
    (WEIGHTS, truncate, "/base' (model.safetensors: "),
    (WEIGHTS, garbage, "/base' (model.safetensors: "),
    (WEIGHTS, become_folder, "model.name_or_path: cannot load"),
    (WEIGHTS, partial(edit_weights, change=_drop_layer), "lacks 9 weights of LlamaForCausalLM"),
    (WEIGHTS, partial(edit_weights, change=_drop_embeddings), "(model.embed_tokens.weight), which would be random"),
    (WEIGHTS, partial(edit_weights, change=_other_shape), "down_proj.weight is [7, 48], expected [32, 48]"),
    (WEIGHTS, partial(edit_weights, change=_other_names), "lacks 21 weights of LlamaForCausalLM"),
    (WEIGHTS, partial(edit_weights, change=_no_tensors), "lacks 21 weights of LlamaForCausalLM"),
    (TOKENIZER, remove, "model.name_or_path: cannot load"),
    (TOKENIZER, empty, "model.name_or_path: cannot load"),
    (TOKENIZER, truncate, "model.name_or_path: cannot load"),
    (TOKENIZER, garbage, "model.name_or_path: cannot load"),
    (TOKENIZER, become_folder, "model.name_or_path: cannot load"),
    ("tokenizer_config.json", empty, "model.name_or_path: cannot load"),
    ("tokenizer_config.json", truncate, "model.name_or_path: cannot load"),
    ("tokenizer_config.json", garbage, "model.name_or_path: cannot load"),
]


def _damage(case: Case, file: str, damage: Callable[[Path], None]) -> None:
    base = Path(case.recipe["model"]["name_or_path"])
    damage(base / file if file else base)


ROWS = [
    Row(f"{file or 'base'} {name_of(damage)}", partial(_damage, file=file, damage=damage), text)
    for file, damage, text in FILES
]
ROWS += [
    Row(
        "a NaN in the weights",
        partial(_damage, file=WEIGHTS, damage=partial(edit_weights, change=_one_nan)),
        "has NaN or infinite weights (model.layers",
    ),
    Row(
        "infinite weights",
        partial(_damage, file=WEIGHTS, damage=partial(edit_weights, change=_all_inf)),
        "has NaN or infinite weights (model.layers",
    ),
]
