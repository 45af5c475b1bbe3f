"""Programs that read exports, each in an environment of its own: their greedy text is that of the original.

The packages of these programs exclude each other. `MULTILORA_CONSUMERS` names a folder of virtual environments with the
names below; without it, the programs are looked for where the tests run:

    openvino_genai        openvino-genai, optimum-intel
    onnxruntime_genai     onnxruntime-genai, onnx, onnx-ir, torch, transformers, peft
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_gpt2, make_llama, make_tokenizer, randomise
from peft import get_peft_model

from multilora import MultiLoraConfig, export_lora
from multilora.export.proof.outputs import NEW_TOKENS, outputs_of
from multilora.export.proof.prompts import random_prompts
from multilora.export.servers.facts import adapter_facts
from multilora.export.servers.table import VLLM_RANKS

pytestmark = pytest.mark.slow

PEFT = """
base, adapter, ids, out = sys.argv[1:5]
from peft import PeftModel
from transformers import AutoModelForCausalLM
import torch
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
for row in json.loads(ids):
    ids = torch.tensor([row])
    text = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
    print("TEXT", text[0, len(row):].tolist())
assert "multilora" not in sys.modules
"""
TRANSFORMERS = """
base, adapter, ids, out = sys.argv[1:5]
from transformers import AutoModelForCausalLM
import torch
model = AutoModelForCausalLM.from_pretrained(base)
model.load_adapter(adapter)
for row in json.loads(ids):
    ids = torch.tensor([row])
    text = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
    print("TEXT", text[0, len(row):].tolist())
assert "multilora" not in sys.modules
"""
OPENVINO = """
base, adapter, ids, out = sys.argv[1:5]
from optimum.intel import OVModelForCausalLM
OVModelForCausalLM.from_pretrained(base, export=True, load_in_8bit=False).save_pretrained(out)
import numpy
import openvino
import openvino_genai as genai
adapters = genai.AdapterConfig(genai.Adapter(adapter + "/adapter_model.safetensors"))
pipe = genai.LLMPipeline(out, "CPU", adapters=adapters, INFERENCE_PRECISION_HINT="f32")
for row in json.loads(ids):
    ids = numpy.array([row])
    inputs = genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
    print("TEXT", pipe.generate(inputs, genai.GenerationConfig(max_new_tokens=16, do_sample=False)).tokens[0])
"""
ONNX = """
base, adapter, ids, out = sys.argv[1:5]
import subprocess
builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", base, "-o", out, "-p", "fp32", "-e", "cpu"]
subprocess.run([*builder, "--extra_options", f"adapter_path={adapter}"], check=True)
import numpy
import onnxruntime_genai as genai
model = genai.Model(out)
for row in json.loads(ids):
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(row) + 16, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(numpy.array([row], dtype=numpy.int32))
    text = []
    while not generator.is_done():
        generator.generate_next_token()
        text.append(int(generator.get_next_tokens()[0]))
    print("TEXT", text)
"""


def python_of(name: str) -> str:
    """The interpreter that has a program; the test is skipped without one."""
    folder = os.environ.get("MULTILORA_CONSUMERS")
    python = Path(folder, name, "bin", "python") if folder else Path()
    if python.is_file():
        return str(python)
    if importlib.util.find_spec(name):
        return sys.executable
    pytest.skip(f"{name} is not installed; see the head of this file")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(base, adapter, prompts, greedy texts of the original), with an adapter that changes the texts."""
    folder = tmp_path_factory.mktemp("consumers")
    # The attention of ONNX Runtime needs heads of a multiple of 16.
    base = make_llama(hidden_size=64, intermediate_size=96)
    base.save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    prompts = random_prompts(320, 256)
    without = outputs_of(base, prompts)
    model = get_peft_model(base, MultiLoraConfig(r=4, num_branches=3, target_modules="all-linear"))
    randomise(model)
    outputs = outputs_of(model, prompts)
    assert all(output.tokens != other.tokens for output, other in zip(outputs, without, strict=True))
    assert min(margin for output in outputs for margin in output.margins) > 1e-3  # no near tie
    assert {len(output.tokens) for output in outputs} == {NEW_TOKENS}
    adapter = export_lora(model, folder / "lora")
    ids = [prompt.ids[: prompt.start] for prompt in prompts]
    return folder / "base", adapter, ids, [output.tokens for output in outputs]


@pytest.mark.parametrize(
    ("name", "script"),
    [("peft", PEFT), ("transformers", TRANSFORMERS), ("openvino_genai", OPENVINO), ("onnxruntime_genai", ONNX)],
)
def test_greedy_text_is_that_of_the_original(exported, tmp_path, name, script):
    base, adapter, ids, texts = exported
    command = [python_of(name), "-c", f"import json, sys{script}", base, adapter, json.dumps(ids), tmp_path / "out"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    read = [json.loads(line[5:]) for line in result.stdout.splitlines() if line.startswith("TEXT ")]
    assert read == texts


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
@pytest.mark.parametrize("ranks", [{}, {"rank_pattern": {"q_proj": 2, "c_attn": 2}}])
def test_the_config_keeps_the_rules_of_vllm(tmp_path, make, ranks):
    """Those of `PEFTHelper` in vLLM 0.32: required fields, and what it refuses."""
    model = get_peft_model(make(), MultiLoraConfig(r=5, num_branches=3, target_modules="all-linear", **ranks))
    randomise(model)
    folder = export_lora(model, tmp_path / "out")
    config = json.loads((folder / "adapter_config.json").read_text())
    facts = adapter_facts(folder)
    assert isinstance(config["r"], int)
    assert isinstance(config["lora_alpha"], int)
    assert isinstance(config["target_modules"], list)
    assert (config["bias"], config["use_dora"], config["use_rslora"]) == ("none", False, False)
    assert not config["modules_to_save"]
    assert not config["rank_pattern"]
    assert config["init_lora_weights"] is True
    assert facts.rank == config["r"] <= VLLM_RANKS[-1]
    assert facts.equal_ranks
