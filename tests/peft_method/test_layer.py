"""The layer's forward and backward equal the plain loops, also with hooks, checkpointing, autocast and compilation."""

from __future__ import annotations

import pytest
import reference
import torch
from conftest import make_llama, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.utils.checkpoint import checkpoint

from multilora import MultiLoraConfig
from multilora.errors import AdapterError
from multilora.peft_method import MultiLoraLinear, fused


def make_layer(d_in, d_out, n=3, r=2, *, bias=True, dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    base = nn.Linear(d_in, d_out, bias=bias, dtype=dtype).requires_grad_(False)
    config = MultiLoraConfig(r=r, num_branches=n, init_weights=False, **options)
    layer = MultiLoraLinear(base, "default", config=config, r=r, alpha=None)
    return layer.to(dtype)


def parameters(layer):
    return [getattr(layer, name)["default"] for name in layer.adapter_layer_names]


@settings(max_examples=30, deadline=None)
@given(
    d_in=st.integers(1, 6),
    d_out=st.integers(1, 6),
    n=st.integers(1, 4),
    r=st.integers(1, 3),
    tokens=st.integers(1, 5),
    bias=st.booleans(),
    scaling=st.sampled_from(["vector", "scalar"]),
    seed=st.integers(0, 1000),
    alpha=st.floats(0.5, 9),
)
def test_forward_and_gradients_equal_the_loops(d_in, d_out, n, r, tokens, bias, scaling, seed, alpha):
    layer = make_layer(d_in, d_out, n, r, bias=bias, seed=seed, scaling=scaling, lora_alpha=alpha)
    x = torch.randn(tokens, d_in, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(tokens, d_out, dtype=torch.float64)
    A, B, scale = parameters(layer)
    inputs = (A, B, scale, x)
    output = layer(x)
    gradients = torch.autograd.grad((output * weights).sum(), inputs)
    branches = list(A.chunk(n)), list(B.chunk(n, dim=1)), [scale[..., i] for i in range(n)]
    base = layer.base_layer
    expected = reference.forward(x, base.weight, base.bias, *branches, alpha / r)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)


def test_lora_initialisation_starts_as_lora_does():
    """The layer equals its base, and the gradients of A and B are those of PEFT's LoRA with the same A."""
    base = nn.Linear(6, 5, dtype=torch.float64).requires_grad_(False)
    config = MultiLoraConfig(r=2, num_branches=3, init_weights="lora")
    ours = MultiLoraLinear(base, "default", config=config, r=2, alpha=None).double()
    theirs = LoraLinear(base, "default", LoraConfig(r=6, lora_alpha=6), r=6, lora_alpha=6).double()
    A, B, scale = parameters(ours)
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(A)
    x = torch.randn(4, 6, dtype=torch.float64)
    assert torch.equal(ours(x), base(x))
    gradients = torch.autograd.grad(ours(x).square().sum(), [A, B, scale])
    factors = [theirs.lora_A["default"].weight, theirs.lora_B["default"].weight]
    expected = torch.autograd.grad(theirs(x).square().sum(), factors)
    for gradient, expected_gradient in zip(gradients[:2], expected, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)
    assert gradients[1].abs().max() > 0
    assert gradients[2].abs().max() == 0


def use_plain_form(monkeypatch):
    monkeypatch.setattr(fused, "applies", lambda *_: False)


@pytest.mark.parametrize("scaling", ["vector", "scalar"])
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (2, 2, 3, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_fused_form_equals_the_plain_form(monkeypatch, scaling, shape, bias):
    layer = make_layer(5, 4, bias=bias, scaling=scaling)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    results = []
    for _ in range(2):
        y = layer(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *parameters(layer)])))
        use_plain_form(monkeypatch)
    for fused_result, plain_result in zip(*results, strict=True):
        torch.testing.assert_close(fused_result, plain_result, rtol=1e-10, atol=1e-10)


def test_only_the_input_and_one_narrow_vector_per_token_are_saved():
    layer = make_layer(64, 64, n=3, r=2, bias=False, dtype=torch.float32)
    parameter_storages = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameter_storages:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(10, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    assert sorted(saved.values()) == [10 * 6 * 4, 10 * 64 * 4]


def test_dropout_backward_uses_the_mask_of_its_forward():
    """The gradient of x agrees with finite differences under the same seed, so both use the same mask."""
    layer = make_layer(6, 4, lora_dropout=0.5).train()
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)

    def loss(value):
        torch.manual_seed(3)
        return layer(value).square().sum()

    assert torch.autograd.gradcheck(loss, x)
    torch.manual_seed(3)
    first = layer(x)
    assert torch.equal(layer(x), layer(x)) is False
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)


def test_dropout_zeroes_the_given_fraction_and_keeps_the_mean():
    drop = fused._Dropout(0.3, seed=1)
    x = torch.ones(401, 251)
    dropped = drop(x)
    assert abs((dropped == 0).float().mean() - 0.3) < 0.01
    assert abs(drop.gain * dropped.mean() - 1) < 0.01
    assert torch.equal(drop(x), dropped)
    assert not torch.equal(fused._Dropout(0.3, seed=2)(x), dropped)


def test_dropout_keeps_the_mean_of_the_layers_output():
    layer = make_layer(6, 4, lora_dropout=0.4).train()
    x = torch.randn(1, 6, dtype=torch.float64)
    mean = sum(layer(x) for _ in range(4000)) / 4000
    torch.testing.assert_close(mean, layer.eval()(x), rtol=0.1, atol=0.1)


def modify_base(name, layer):
    """Change the base so that the layer must call it and not compute its product itself."""
    base = layer.base_layer
    if name == "trained base":
        base.requires_grad_(True)
    elif name == "replaced forward":  # as accelerate's offloading does
        plain = base.forward
        base.forward = lambda x: 2 * plain(x)
    elif name == "pre-hook":
        base.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    elif name == "hook":
        base.register_forward_hook(lambda _, __, output: output + 1)
    elif name == "subclass":
        base.__class__ = type("Doubled", (nn.Linear,), {"forward": lambda self, x: 2 * nn.Linear.forward(self, x)})


@pytest.mark.parametrize("name", ["trained base", "replaced forward", "pre-hook", "hook", "subclass"])
def test_a_modified_base_is_called(monkeypatch, name):
    layer = make_layer(6, 4)
    modify_base(name, layer)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    trained = [x, *(p for p in layer.parameters() if p.requires_grad)]
    results = []
    for _ in range(2):
        y = layer(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), trained)))
        use_plain_form(monkeypatch)
    torch.testing.assert_close(results[0][0] - layer.base_layer(x), x @ layer.get_delta_weight("default").T)
    for fused_result, plain_result in zip(*results, strict=True):
        torch.testing.assert_close(fused_result, plain_result, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_nothing(reentrant):
    layer = make_layer(6, 4, lora_dropout=0.3).train()
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    results = []
    for wrapped in (False, True):
        torch.manual_seed(5)
        y = checkpoint(layer, x, use_reentrant=reentrant) if wrapped else layer(x)
        layer.zero_grad()
        x.grad = None
        y.square().sum().backward()
        results.append([y.detach(), x.grad.clone(), *(p.grad.clone() for p in parameters(layer))])
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)


@pytest.mark.parametrize("bias", [True, False])
def test_an_in_place_activation_can_follow(bias):
    layer = make_layer(6, 4, bias=bias)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    nn.Sequential(layer, nn.ReLU(inplace=True))(x).sum().backward()
    expected = torch.autograd.grad(torch.relu(layer(x)).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)


def test_a_hook_on_the_base_gets_the_bases_output():
    layer = make_layer(6, 4, bias=False)
    hooked_outputs = []
    layer.base_layer.register_forward_hook(lambda _, __, output: hooked_outputs.append(output))
    x = torch.randn(3, 6, dtype=torch.float64)
    y = layer(x)
    torch.testing.assert_close(hooked_outputs[0], x @ layer.base_layer.weight.T)
    assert not torch.equal(y, hooked_outputs[0])


def saved_widths(layer, x):
    """The last dimension of each tensor saved for backward, without parameters."""
    parameter_storages = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    widths = []

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in parameter_storages:
            widths.append(tensor.shape[-1])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return sorted(widths)


def test_frozen_parameters_save_no_tensors():
    layer = make_layer(64, 32, n=3, r=2, dtype=torch.float32)
    x = torch.randn(10, 64, requires_grad=True)
    assert saved_widths(layer, x) == [6, 64]
    layer.multilora_A["default"].requires_grad_(False)
    assert saved_widths(layer, x) == [6]
    layer.requires_grad_(False)
    assert saved_widths(layer, x) == []


def test_offloaded_parameters_are_loaded():
    """accelerate loads a module's parameters when the module is called."""
    from accelerate import cpu_offload

    layer = make_layer(64, 32, dtype=torch.float32).requires_grad_(False)
    x = torch.randn(5, 64)
    expected = layer(x)
    factors = layer.effective_factors("default")
    cpu_offload(layer, execution_device=torch.device("cpu"))
    assert layer.multilora_A["default"].is_meta
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.effective_factors("default"), factors)


def test_parameters_on_another_device_are_an_error():
    layer = make_layer(6, 4)
    layer.multilora_B["default"] = nn.Parameter(layer.multilora_B["default"].to("meta"))
    layer.multilora_A["default"] = nn.Parameter(layer.multilora_A["default"].to("meta"))
    with pytest.raises(AdapterError, match="parameters are on meta, the input on cpu"):
        layer(torch.randn(3, 6, dtype=torch.float64))


def test_meta_tensors():
    layer = make_layer(6, 4).to("meta")
    assert layer(torch.empty(3, 6, dtype=torch.float64, device="meta")).shape == (3, 4)


def test_traced_equals_eager():
    layer = make_layer(6, 4).eval()
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(torch.jit.trace(layer, x)(x + 1), layer(x + 1))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_backward_can_run_inside_autocast(dropout):
    layer = make_layer(6, 4, dtype=torch.float32, lora_dropout=dropout).train()
    x = torch.randn(3, 6, requires_grad=True)
    gradients = []
    for inside in (False, True):
        torch.manual_seed(0)
        y = layer(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            gradients.append(torch.autograd.grad(y.square().sum(), [x, *parameters(layer)]))
    for outside_gradient, inside_gradient in zip(*gradients, strict=True):
        assert torch.equal(outside_gradient, inside_gradient)


def test_autocast_does_not_cast_float64():
    layer = make_layer(6, 4)
    x = torch.randn(3, 6, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, layer(x))


def test_autocast_computes_in_bfloat16_with_float32_gradients():
    layer = make_layer(16, 8, dtype=torch.float32)
    x = torch.randn(5, 16, requires_grad=True)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in parameters(layer))
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)


def test_compiled_equals_eager():
    layer = make_layer(6, 4, dtype=torch.float32)
    x = torch.randn(3, 6, requires_grad=True)
    y = layer(x)
    expected_gradients = torch.autograd.grad(y.square().sum(), [x, *parameters(layer)])
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled, y, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(compiled.square().sum(), [x, *parameters(layer)])
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


def test_a_batch_with_an_adapter_per_row():
    model = get_peft_model(make_llama(), MultiLoraConfig(r=2, target_modules="all-linear"))
    model.add_adapter("other", MultiLoraConfig(r=3, num_branches=2, target_modules="all-linear"))
    randomise(model)
    randomise(model, "other", seed=2)
    model.eval()
    ids = torch.arange(3, 33).reshape(3, 10)
    with torch.no_grad():
        mixed = model(ids, adapter_names=["other", "__base__", "default"]).logits
        for row, name in enumerate(["other", "__base__", "default"]):
            if name == "__base__":
                with model.disable_adapter():
                    alone = model(ids).logits
            else:
                model.set_adapter(name)
                alone = model(ids).logits
            torch.testing.assert_close(mixed[row], alone[row], rtol=1e-4, atol=1e-4)
