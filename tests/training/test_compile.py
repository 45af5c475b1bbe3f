"""`torch_compile` changes neither the steps nor the saved files, and the loss stays chunked."""

from __future__ import annotations

import pytest
import torch
from conftest import make_llama
from safetensors.torch import load_file
from torch import nn

import multilora
from multilora.errors import InputError
from multilora.training.compile import compile_blocks


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["multilora", pytest.param("full", marks=pytest.mark.slow)])
def test_compiled_equals_eager(recipe, tmp_path, caplog, method, checkpointing):
    recipe["adapter"] = {"method": method}
    recipe["data"]["packing"] = True
    recipe["evaluation"] |= {"every": 2}
    options = ["training.max_steps=4", f"training.gradient_checkpointing={str(checkpointing).lower()}"]
    eager = multilora.train(recipe, [*options, f"output_dir={tmp_path / 'eager'}"])
    caplog.clear()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # Only dynamo and AOTAutograd: compiling with inductor takes minutes.
    compiled = multilora.train(recipe, [*options, "training.torch_compile_backend=aot_eager"])
    assert torch._dynamo.utils.counters["aot_autograd"]["ok"] >= 1
    assert "not used as a plain linear map" not in caplog.text
    for line, expected_line in zip(compiled.metrics, eager.metrics, strict=True):
        for key in expected_line.keys() & {"loss", "loss/even", "loss/echo", "grad_norm", "eval/echo/loss"}:
            assert line[key] == pytest.approx(expected_line[key], rel=1e-4), key
    weights, expected = (load_file(next(run.weights.glob("*.safetensors"))) for run in (compiled, eager))
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=1e-3, msg=key)


def test_only_repeated_blocks_are_compiled():
    model = make_llama()
    assert compile_blocks(model, backend="eager", mode=None) == 2
    compiled = [name for name, module in model.named_modules() if module._compiled_call_impl is not None]
    assert compiled == ["model.layers.0", "model.layers.1"]
    with pytest.raises(InputError, match="Linear has no list of two or more blocks"):
        compile_blocks(nn.Linear(2, 2), backend="eager", mode=None)
