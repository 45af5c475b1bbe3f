"""Quantised bases on the CPU: bitsandbytes with 4 and 8 bits, torchao with 8 bits."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import make_llama, randomise
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from multilora import MultiLoraConfig, export_lora
from multilora.errors import AdapterError
from multilora.peft_method import MultiLoraLayer

IDS = torch.arange(3, 27).reshape(2, 12)


def bnb(**options):
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(**options)


def torchao():
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


QUANTISATIONS = {
    "bnb nf4": lambda: bnb(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
    "bnb int8": lambda: bnb(load_in_8bit=True),
    "torchao int8": torchao,
}


@pytest.fixture(params=QUANTISATIONS)
def load(request, tmp_path):
    settings = QUANTISATIONS[request.param]()
    # Sizes that are multiples of the quantisation block.
    make_llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")

    def load_base():
        return AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=copy.deepcopy(settings), dtype=torch.float32, device_map="cpu"
        )

    return load_base


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def config(**options):
    return MultiLoraConfig(**{"r": 4, "target_modules": "all-linear", **options})


def test_learns_saves_and_reloads(load, tmp_path):
    model = get_peft_model(prepare_model_for_kbit_training(load(), use_gradient_checkpointing=False), config())
    layers = [module for module in model.modules() if isinstance(module, MultiLoraLayer)]
    assert len(layers) == 14
    assert all(layer.quantization_backend is not None for layer in layers)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(40):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]
    # Before saving, because then bitsandbytes undoes its repacking for the CPU, with a loss of precision in the base.
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(PeftModel.from_pretrained(load(), tmp_path / "adapter")), expected)


def test_the_untrained_adapter_does_not_change_the_model(load):
    assert torch.equal(logits(get_peft_model(load(), config())), logits(load()))


def test_the_untrained_adapter_does_not_change_the_model_under_autocast(load):
    base, adapted = load().eval(), get_peft_model(load(), config()).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, output = base(IDS).logits, adapted(IDS).logits
        with adapted.disable_adapter():
            disabled = adapted(IDS).logits
    assert output.dtype == expected.dtype
    assert torch.equal(output, expected)
    assert torch.equal(disabled, expected)


def test_training_after_evaluation_is_correct_or_refused(load):
    """On the CPU, bitsandbytes' 4-bit layers have no backward after an evaluation."""
    fresh, evaluated = (get_peft_model(load(), config()) for _ in range(2))
    evaluated.load_state_dict({k: v for k, v in fresh.state_dict().items() if "multilora_" in k}, strict=False)
    for model in (fresh, evaluated):
        randomise(model)
    logits(evaluated)
    gradients = []
    problem = ""
    for model in (fresh, evaluated):
        try:
            model.train()(IDS, labels=IDS).loss.backward()
        except AdapterError as error:
            problem = str(error)
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    if problem:
        assert "reload the base to train" in problem
        assert gradients[1] == [None] * len(gradients[0])
        return
    for fresh_gradient, evaluated_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(fresh_gradient, evaluated_gradient)


def test_exported_lora_is_equal_on_the_same_base(load, tmp_path):
    model = get_peft_model(load(), config(scaling="scalar"))
    randomise(model)
    folder = export_lora(model, tmp_path / "lora")
    lora = PeftModel.from_pretrained(load(), folder)
    torch.testing.assert_close(logits(lora), logits(model), rtol=1e-4, atol=1e-4)


def test_the_branches_gradients_equal_those_on_a_plain_base(load):
    """A plain base with the dequantised weights has the same gradients."""
    quantised = get_peft_model(load(), config())
    randomise(quantised)
    layer = next(module for module in quantised.modules() if isinstance(module, MultiLoraLayer))
    plain_base = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
    plain_base.weight = torch.nn.Parameter(layer.get_base_weight().detach().float(), requires_grad=False)
    x = torch.randn(5, layer.in_features, requires_grad=True)
    quantised.train()
    y = layer(x)
    parts = [getattr(layer, part)["default"] for part in layer.adapter_layer_names]
    weights = torch.randn_like(y)
    gradients = torch.autograd.grad((y * weights).sum(), [x, *parts])
    layer.base_layer, layer.quantization_backend = plain_base, None
    expected_gradients = torch.autograd.grad((layer(x) * weights).sum(), [x, *parts])
    # Int8 products round the base's part of y and of the gradient of x; the branches' gradients are exact.
    for gradient, expected_gradient in zip(gradients[1:], expected_gradients[1:], strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients[0], expected_gradients[0], rtol=0.05, atol=0.2)
