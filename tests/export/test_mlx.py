"""The files of an MLX export hold the update of the adapter, in the layout that mlx-lm reads."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_gpt2, randomise
from families import FAMILIES, deltas, make_adapted, make_base
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file

from multilora import MultiLoraConfig
from multilora.errors import AdapterError, RunDirectoryError
from multilora.export.formats.mlx import export_mlx

# A Python with mlx-lm, such as /path/to/venv/bin/python; it need not have multilora.
MLX_PYTHON = os.environ.get("MULTILORA_MLX_PYTHON", "")
IDS = list(range(3, 27))

MLX_LOGITS = """
import json, sys
from pathlib import Path
import mlx.core as mx
import numpy as np
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model
base, adapter, out, ids = sys.argv[1:5]
model, _ = load_model(Path(base))
ids = mx.array([json.loads(ids)])
before = model(ids)
model = load_adapters(model, adapter)
model.eval()
np.savez(out, before=np.array(before), after=np.array(model(ids)))
"""


def mlx_update(tensors: dict[str, np.ndarray], module: str, scale: float) -> np.ndarray:
    """Delta W [..., d_out, d_in], as mlx-lm applies it."""
    a, b = tensors[f"{module}.lora_a"], tensors[f"{module}.lora_b"]
    return scale * (b @ a if a.ndim == 3 else b.T @ a.T)


def save_as_published(model: Any, folder: Path) -> None:
    """Save a base with the keys that configs had before transformers 5, which mlx-lm reads."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    rope = config["rope_parameters"]
    config["rope_theta"] = rope.get("full_attention", rope)["rope_theta"]
    if "sliding_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    if "num_local_experts" in config:
        config["num_experts"] = config["num_local_experts"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_files_hold_the_update(tmp_path, model_type):
    model = make_adapted(model_type, rank_pattern={"q_proj": 5, "layers.1.mlp.down_proj": 1})
    folder = export_mlx(model, tmp_path / "out")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["fine_tune_type"] == "lora"
    assert config["num_layers"] == model.config.num_hidden_layers
    options = config["lora_parameters"]
    assert options["rank"] == 15
    assert options["keys"] == sorted(
        [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    )
    tensors = load_file(folder / "adapters.safetensors")
    expected = deltas(model)
    assert len(tensors) == 2 * len(expected)
    for name, delta in expected.items():
        module = name.removesuffix(".weight")
        assert tensors[f"{module}.lora_a"].shape == (delta.shape[1], 15)
        assert tensors[f"{module}.lora_b"].shape == (15, delta.shape[0])
        update = mlx_update(tensors, module, options["scale"])
        np.testing.assert_allclose(update, delta.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


def test_stacked_experts_keep_their_orientation(tmp_path):
    model = make_adapted("qwen3_moe")
    folder = export_mlx(model, tmp_path / "out")
    tensors = load_file(folder / "adapters.safetensors")
    for name, delta in deltas(model).items():
        if not name.endswith("gate_up_proj"):
            continue
        module = name.replace(".experts.", ".switch_mlp.")
        halves = [mlx_update(tensors, module.replace("gate_up", part), 1.0) for part in ("gate", "up")]
        np.testing.assert_allclose(np.concatenate(halves, 1), delta.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.skipif(not MLX_PYTHON, reason="set MULTILORA_MLX_PYTHON to a Python with mlx-lm")
@pytest.mark.parametrize("model_type", FAMILIES)
def test_mlx_lm_computes_the_same_logits(tmp_path, model_type):
    save_as_published(make_base(model_type), tmp_path / "base")
    model = make_adapted(model_type, rank_pattern={"q_proj": 5})
    folder = export_mlx(model, tmp_path / "out")
    command = [MLX_PYTHON, "-c", MLX_LOGITS, tmp_path / "base", folder, tmp_path / "logits.npz", json.dumps(IDS)]
    subprocess.run(command, check=True, cwd=tmp_path)
    logits = np.load(tmp_path / "logits.npz")
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits.numpy()
        with model.disable_adapter():
            base = model(torch.tensor([IDS])).logits.numpy()
    assert abs(expected - base).max() > 1
    # mlx-lm's own Gemma differs from that of transformers by 1e-4, without an adapter.
    np.testing.assert_allclose(logits["before"], base, atol=5e-4, rtol=0)
    np.testing.assert_allclose(logits["after"], expected, atol=5e-4, rtol=0)


def test_the_file_can_be_read_by_all_users(tmp_path):
    folder = export_mlx(make_adapted("llama"), tmp_path / "out")
    assert (folder / "adapters.safetensors").stat().st_mode & 0o777 == (
        folder / "adapter_config.json"
    ).stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: get_peft_model(make_gpt2(), MultiLoraConfig(target_modules=["c_attn"])), "`gpt2`"),
        (lambda: make_adapted("llama", modules_to_save=["lm_head"]), "lm_head.weight"),
        (lambda: make_adapted("llama", trainable_token_indices=[3, 4]), "model.embed_tokens"),
        (lambda: get_peft_model(make_base("gemma"), LoraConfig(target_modules=["embed_tokens"])), "embed_tokens"),
    ],
    ids=["architecture", "modules_to_save", "tokens", "tied"],
)
def test_what_mlx_cannot_hold_is_refused(tmp_path, make, named):
    model = make()
    randomise(model)
    with pytest.raises(AdapterError, match=named) as caught:
        export_mlx(model, tmp_path / "out")
    assert "--to merged" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_folder_is_refused(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(RunDirectoryError, match="is not empty"):
        export_mlx(make_adapted("llama"), tmp_path)
