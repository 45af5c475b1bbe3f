"""Runs on a 4-bit or 8-bit base, from training to the exported model."""

from __future__ import annotations

import pytest
import torch
from conftest import make_llama, make_tokenizer
from peft.utils import resolve_quantization_backend

import multilora
from multilora.errors import RecipeError

pytest.importorskip("bitsandbytes")


@pytest.fixture
def quantized(recipe, tmp_path):
    """A recipe whose base is wide enough for complete quantization blocks."""
    folder = tmp_path / "wide"
    make_llama(hidden_size=64, intermediate_size=128).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    recipe["model"]["name_or_path"] = str(folder)
    recipe["training"] |= {"max_steps": 30, "learning_rate": 0.03}
    return recipe


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_trains_evaluates_and_exports(quantized, tmp_path, caplog, bits):
    run = multilora.train(quantized, [f"model.quantization={bits}"])
    kinds = {type(module).__name__ for module in run.load_base().modules()}
    assert ("Linear4bit" if bits == "4bit" else "Linear8bitLt") in kinds
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])
    scores = multilora.evaluate(run, max_examples=4)
    assert scores.after["echo"].loss < scores.before["echo"].loss
    merged = multilora.export_merged(run, tmp_path / "merged")
    assert "merged into the dequantized weights" in caplog.text
    ids = torch.arange(3, 27).reshape(2, 12)
    exact = run.load_model(quantized=False).eval()
    with torch.no_grad():
        original = exact(ids).logits
        for name, module in run.load_base().named_modules():  # the adapter was trained on the quantized weights
            backend = resolve_quantization_backend(module)
            if backend is not None:
                layer = exact.get_base_model().get_submodule(name)
                layer.set_base_weight(backend.get_base_weight(module).float())
    assert (exact(ids).logits - original).abs().max() > 1e-3
    with torch.no_grad():
        from transformers import AutoModelForCausalLM

        logits = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(ids).logits
        torch.testing.assert_close(logits, exact(ids).logits, rtol=1e-4, atol=1e-4)


def test_training_quantized_weights_raises(quantized):
    with pytest.raises(RecipeError, match=r"model.quantization: 4bit weights cannot be trained; use an adapter"):
        multilora.plan(quantized, ["model.quantization=4bit", "adapter={method: full}"])
