"""llama.cpp computes the logits of the original from a GGUF adapter and from a merged model.

MULTILORA_LLAMA_CPP is the source tree of llama.cpp; the sdist of llama-cpp-python has it in vendor/. Logits also need
MULTILORA_LLAMA_PYTHON, a Python with llama-cpp-python, unless that package is in this environment. MULTILORA_GEMMA adds
a folder with Gemma 3 270M.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, randomise
from families import FAMILIES, SIZES, make_adapted, make_base
from gguf import GGUFReader
from peft import get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from multilora import MultiLoraConfig
from multilora.export.factors import adapter_factors
from multilora.export.formats.gguf import export_gguf
from multilora.export.lora.universal import lora_files
from multilora.export.lora.unstack import unstack

TREE = Path(os.environ.get("MULTILORA_LLAMA_CPP", "/nonexistent"))
HERE = sys.executable if importlib.util.find_spec("llama_cpp") else ""
PYTHON = os.environ.get("MULTILORA_LLAMA_PYTHON", HERE)
# Folder -> factor on the random scales of the adapter
REAL_BASES = {
    REPOSITORY.parent / "shared/models/small-base": 0.2,
    Path(os.environ.get("MULTILORA_GEMMA", "/nonexistent")): 0.05,
}
IDS = list(range(3, 27))

pytestmark = pytest.mark.skipif(
    not (TREE / "convert_hf_to_gguf.py").is_file(), reason="set MULTILORA_LLAMA_CPP to the source tree of llama.cpp"
)
needs_llama = pytest.mark.skipif(not PYTHON, reason="set MULTILORA_LLAMA_PYTHON to a Python with llama-cpp-python")

# llama.cpp's converter, but without the tokenizer: the tests compare logits of token ids.
CONVERT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import convert_hf_to_gguf as converter
get_model_class = converter.get_model_class
def without_tokenizer(*args, **options):
    cls = get_model_class(*args, **options)
    def set_vocab(self):
        self.gguf_writer.add_tokenizer_model("none")
        if not hasattr(cls, "undo_permute"):  # the others add it themselves
            self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])
    cls.set_vocab = set_vocab
    return cls
converter.get_model_class = without_tokenizer
converter.main()
"""
# The cache of keys and values in float32; by default it is float16.
LOGITS = """
import json, sys
import numpy as np
from llama_cpp import Llama
model, adapter, ids, out = sys.argv[1:5]
ids = json.loads(ids)
sizes = {"n_ctx": len(ids), "n_batch": len(ids), "n_threads": 1, "n_threads_batch": 1}
llama = Llama(model, lora_path=adapter or None, logits_all=True, type_k=0, type_v=0, verbose=False, **sizes)
llama.eval(ids)
np.save(out, llama.scores[: len(ids)])
"""


def convert_base(folder: Path, out: Path) -> Path:
    if not (folder / "tokenizer.json").exists():  # for Gemma 3, llama.cpp counts the tokens there
        vocabulary = {str(token): token for token in range(SIZES["vocab_size"])}
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
    options = ["--outtype", "f32", "--outfile", out]
    subprocess.run([sys.executable, "-c", CONVERT, TREE, folder, *options], check=True)
    return out


def llama_logits(model: Path, adapter: Path | None, ids: list[int]) -> np.ndarray:
    out = model.with_suffix(".npy")
    subprocess.run([PYTHON, "-c", LOGITS, model, adapter or "", json.dumps(ids), out], check=True)
    return np.load(out)


def tolerance_of(model_type: str, logits: np.ndarray) -> float:
    """llama.cpp looks GELU, which Gemma uses, up in a table of float16."""
    return 1e-2 * float(logits.std()) if model_type.startswith("gemma") else 1e-4


@torch.no_grad()
def own_logits(model: Any, ids: list[int]) -> np.ndarray:
    return model(torch.tensor([ids])).logits[0].float().numpy()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_llama_cpp_converts_the_exported_lora_to_the_same_tensors(tmp_path, model_type):
    make_base(model_type).save_pretrained(tmp_path / "base")
    model = make_adapted(model_type)
    (tmp_path / "lora").mkdir()
    config, state = lora_files(unstack(adapter_factors(model)))
    config.save_pretrained(str(tmp_path / "lora"))
    save_file(state, str(tmp_path / "lora" / "adapter_model.safetensors"))
    converter = [sys.executable, TREE / "convert_lora_to_gguf.py", "--base", tmp_path / "base", "--outtype", "f32"]
    subprocess.run([*converter, "--outfile", tmp_path / "theirs.gguf", tmp_path / "lora"], check=True)
    readers = [GGUFReader(tmp_path / "theirs.gguf"), GGUFReader(export_gguf(model, tmp_path / "ours.gguf"))]
    theirs, ours = ({tensor.name: tensor.data for tensor in reader.tensors} for reader in readers)
    assert theirs.keys() == ours.keys()
    for name, data in theirs.items():
        np.testing.assert_array_equal(ours[name], data, err_msg=name)
    for key in ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"):
        assert len({reader.fields[key].contents() for reader in readers}) == 1, key


@needs_llama
@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAMILIES)
def test_logits_of_a_tiny_model(tmp_path, model_type):
    make_base(model_type).save_pretrained(tmp_path / "base")
    base = convert_base(tmp_path / "base", tmp_path / "base.gguf")
    model = make_adapted(model_type, rank_pattern={"q_proj": 5})
    adapter = export_gguf(model, tmp_path / "lora.gguf")
    expected = own_logits(model, IDS)
    tolerance = tolerance_of(model_type, expected)
    assert abs(expected - llama_logits(base, None, IDS)).max() > 1
    np.testing.assert_allclose(llama_logits(base, adapter, IDS), expected, atol=tolerance, rtol=0)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = convert_base(tmp_path / "merged", tmp_path / "merged.gguf")
    np.testing.assert_allclose(llama_logits(merged, None, IDS), expected, atol=tolerance, rtol=0)


@needs_llama
@pytest.mark.slow
@pytest.mark.parametrize(("folder", "factor"), REAL_BASES.items(), ids=["small-base", "gemma-270m"])
def test_logits_of_a_real_model(tmp_path, folder, factor):
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not here")
    base = convert_base(folder, tmp_path / "base.gguf")
    config = MultiLoraConfig(r=8, num_branches=3, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), config).eval()
    randomise(model)
    for name, parameter in model.named_parameters():
        if "multilora_scale" in name:
            parameter.data.mul_(factor)
    adapter = export_gguf(model, tmp_path / "lora.gguf")
    expected = own_logits(model, IDS)
    tolerance = tolerance_of(model.config.model_type, expected)
    assert abs(expected - llama_logits(base, None, IDS)).max() > 1
    np.testing.assert_allclose(llama_logits(base, adapter, IDS), expected, atol=tolerance, rtol=0)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "merged")
    merged = convert_base(tmp_path / "merged", tmp_path / "merged.gguf")
    np.testing.assert_allclose(llama_logits(merged, None, IDS), expected, atol=tolerance, rtol=0)
