"""A GGUF adapter holds the update of the adapter, under llama.cpp's names and in its order of rows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from conftest import make_gpt2, randomise
from families import FAMILIES, deltas, make_adapted, make_base
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model

from multilora import MultiLoraConfig
from multilora.errors import AdapterError, RunDirectoryError, RunError
from multilora.export.formats.gguf import export_gguf

# The end of a weight's name in the model -> llama.cpp's name
NAMES = {
    "self_attn.q_proj.weight": "attn_q",
    "self_attn.k_proj.weight": "attn_k",
    "self_attn.v_proj.weight": "attn_v",
    "self_attn.o_proj.weight": "attn_output",
    "mlp.gate_proj.weight": "ffn_gate",
    "mlp.up_proj.weight": "ffn_up",
    "mlp.down_proj.weight": "ffn_down",
    "mlp.experts.down_proj": "ffn_down_exps",
}
REORDERED = {"llama": 4, "mistral": 4}  # model type -> heads of the queries; the keys have half of them


def read(path: Path) -> tuple[GGUFReader, dict[str, torch.Tensor]]:
    reader = GGUFReader(path)
    return reader, {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}


def update(reader: GGUFReader, tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Delta W in the rows of the GGUF, scaled as llama.cpp scales it."""
    a, b = tensors[f"{name}.weight.lora_a"], tensors[f"{name}.weight.lora_b"]
    alpha = reader.fields["adapter.lora.alpha"].contents()
    return alpha / b.shape[-1] * (b @ a)


def llama_row(row: int, head_size: int) -> int:
    """Where llama.cpp has a row of q or k: the two halves of a head alternate."""
    head, inner = divmod(row, head_size)
    half, index = divmod(inner, head_size // 2)
    return head * head_size + 2 * index + half


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_file_read_back_holds_the_update(tmp_path, model_type):
    model = make_adapted(model_type, rank_pattern={"q_proj": 5})
    reader, tensors = read(export_gguf(model, tmp_path / "lora.gguf"))
    expected = deltas(model)
    compared = 0
    for full_name, delta in expected.items():
        layer, _, end = full_name.removeprefix("model.layers.").partition(".")
        if end.endswith("gate_up_proj"):
            written = torch.cat([update(reader, tensors, f"blk.{layer}.ffn_{part}_exps") for part in ("gate", "up")], 1)
            compared += 2
        else:
            written = update(reader, tensors, f"blk.{layer}.{NAMES[end]}")
            compared += 1
        if model_type in REORDERED and end.endswith(("q_proj.weight", "k_proj.weight")):
            rows = [llama_row(row, 8) for row in range(len(delta))]
            assert not torch.allclose(written, delta, atol=1e-3)
            written = written[rows]
        torch.testing.assert_close(written, delta, rtol=1e-5, atol=1e-6, msg=full_name)
    assert len(tensors) == 2 * compared


def test_fields_say_what_the_file_is(tmp_path):
    model = make_adapted("mistral")
    model.peft_config["default"].base_model_name_or_path = "owner/base"
    reader, _ = read(export_gguf(model, tmp_path / "lora.gguf"))
    expected = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "general.base_model.0.name": "owner/base",
        "adapter.type": "lora",
        "adapter.lora.alpha": 6.0,
    }
    assert {key: reader.fields[key].contents() for key in expected} == expected


def test_embeddings_and_head_of_an_untied_model(tmp_path):
    """llama.cpp looks up rows of an embedding's `lora_a`, so it is stored as [vocabulary, rank]."""
    config = LoraConfig(r=3, target_modules=["embed_tokens", "lm_head"], init_lora_weights=False)
    model = get_peft_model(make_base("llama"), config)
    base = model.get_base_model()
    _, tensors = read(export_gguf(model, tmp_path / "lora.gguf"))
    embedding = tensors["token_embd.weight.lora_a"] @ tensors["token_embd.weight.lora_b"].T
    torch.testing.assert_close(embedding, base.model.embed_tokens.get_delta_weight("default"))
    head = tensors["output.weight.lora_b"] @ tensors["output.weight.lora_a"]
    torch.testing.assert_close(head, base.lm_head.get_delta_weight("default"))


def test_the_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "other").write_text("")
    path = export_gguf(make_adapted("llama"), tmp_path / "new" / "lora.gguf")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert os.listdir(path.parent) == ["lora.gguf"]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: get_peft_model(make_gpt2(), MultiLoraConfig(target_modules=["c_attn"])), "convert_lora_to_gguf.py"),
        (lambda: make_adapted("llama", modules_to_save=["lm_head"]), "lm_head.weight.*--to merged"),
        (lambda: make_adapted("qwen2", bias="all"), "bias.*--to merged"),
        (lambda: make_adapted("llama", trainable_token_indices=[3, 4]), "model.embed_tokens.*--to merged"),
        (lambda: get_peft_model(make_base("gemma"), LoraConfig(target_modules=["embed_tokens"])), "--to merged"),
        (lambda: make_adapted("llama", target_parameters=["embed_tokens.weight"]), "embed_tokens.weight.*--to merged"),
    ],
    ids=["architecture", "modules_to_save", "bias", "tokens", "tied", "embedding as a parameter"],
)
def test_what_llama_cpp_cannot_add_is_refused(tmp_path, make, named):
    model = make()
    randomise(model)
    with pytest.raises(AdapterError, match=named):
        export_gguf(model, tmp_path / "lora.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_taken_or_misnamed_file_is_refused(tmp_path):
    (tmp_path / "mine.gguf").write_text("mine")
    for name, problem in (("mine.gguf", "exists"), ("folder", r"ends in \.gguf")):
        with pytest.raises(RunDirectoryError, match=problem):
            export_gguf(make_adapted("llama"), tmp_path / name)
    assert (tmp_path / "mine.gguf").read_text() == "mine"


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    from gguf import GGUFWriter

    def fail(self: GGUFWriter) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GGUFWriter, "write_tensors_to_file", fail)
    with pytest.raises(RunError, match="free some space"):
        export_gguf(make_adapted("llama"), tmp_path / "lora.gguf")
    assert list(tmp_path.iterdir()) == []
