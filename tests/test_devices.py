"""Training, evaluation and export on every kind of device that is there; `benchmarks/gpu.sh` runs them on a GPU."""

from __future__ import annotations

import pytest
import reference
import torch
from conftest import make_llama
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import TrainerCallback

import multilora
from multilora import MultiLoraConfig
from multilora.errors import RunError
from multilora.loss.token_losses import token_losses
from multilora.peft_method import MultiLoraLinear

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def device(request):
    return request.param


def make_layer(device, dtype, **options):
    torch.manual_seed(0)
    base = nn.Linear(48, 40, dtype=dtype).requires_grad_(False)
    config = MultiLoraConfig(r=4, num_branches=3, init_weights=False, **options)
    return MultiLoraLinear(base, "default", config=config, r=4, alpha=None).to(device)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_the_layer_equals_the_loops(device, dtype, tolerance):
    layer = make_layer(device, dtype)
    x = torch.randn(2, 5, 48, dtype=dtype, device=device, requires_grad=True)
    A, B, scale = (getattr(layer, name)["default"] for name in layer.adapter_layer_names)
    output = layer(x)
    weights = torch.randn(output.shape, device=device).to(dtype)
    gradients = torch.autograd.grad((output * weights).sum(), [A, B, scale, x])
    exact = [value.detach().double().cpu().requires_grad_() for value in (A, B, scale, x)]
    branches = list(exact[0].chunk(3)), list(exact[1].chunk(3, dim=1)), [exact[2][..., i] for i in range(3)]
    output, base = output.detach(), layer.base_layer
    expected = reference.forward(
        exact[3].view(-1, 48), base.weight.double().cpu(), base.bias.double().cpu(), *branches, 1.0
    )
    expected_gradients = torch.autograd.grad((expected * weights.double().cpu().view(-1, 40)).sum(), exact)
    for actual, wanted in zip((output, *gradients), (expected, *expected_gradients), strict=True):
        wanted = wanted.view(actual.shape)
        torch.testing.assert_close(actual.double().cpu(), wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))


def test_dropout_uses_the_same_mask_in_backward(device):
    layer = make_layer(device, torch.float64, lora_dropout=0.5).double().train()
    x = torch.randn(3, 48, dtype=torch.float64, device=device, requires_grad=True)

    def loss(value):
        torch.manual_seed(3)
        return layer(value).square().sum()

    assert torch.autograd.gradcheck(loss, x)


def test_losses_of_tokens_equal_those_of_full_logits(device):
    model = make_llama().to(device).train()
    ids = torch.randint(3, 100, (2, 9), device=device)
    labels = ids.clone()
    labels[:, :4] = -100
    losses, trained = token_losses(model, {"input_ids": ids}, labels)
    logits = model(input_ids=ids).logits[:, :-1][trained].float()
    expected = F.cross_entropy(logits, labels[:, 1:][trained], reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 5:
            raise RuntimeError("power cut")


def test_a_resumed_run_equals_an_uninterrupted_one_and_can_be_scored_and_exported(device, recipe, tmp_path):
    options = ["training.max_steps=8", "training.save_steps=2", "adapter.lora_dropout=0.1"]
    options += ["training.use_cpu=true"] if device == "cpu" else []
    whole = multilora.train(recipe, [*options, f"output_dir={tmp_path / 'whole'}"])
    with pytest.raises(RunError, match="power cut"):
        multilora.train(recipe, options, callbacks=[Stop()])
    resumed = multilora.train(recipe, options, resume=True)
    assert resumed.training["resumed_from_step"] == 4
    actual, expected = (load_file(run.weights / "adapter_model.safetensors") for run in (resumed, whole))
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    scores = multilora.evaluate(resumed)
    assert set(scores.after) == {"even", "echo"}
    multilora.export_lora(resumed, tmp_path / "export")  # compares the logits and texts of the export and the run
