"""Packing changes neither logits nor gradients of any segment, with eager and SDPA attention."""

from __future__ import annotations

import os

import pytest
import torch
from conftest import make_gpt2, make_llama
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from multilora.data.collate import Collator, collator_for
from multilora.data.probe import check_packing
from multilora.errors import InputError
from multilora.loss.token_losses import token_losses


def make_qwen2():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        use_sliding_window=False,
    )
    return Qwen2ForCausalLM(config).eval()


MODELS = {"llama": make_llama, "gpt2": make_gpt2, "qwen2": make_qwen2}
LENGTHS = [[7, 11, 3], [19, 1], [5]]


def segment(length, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 320, (length,), generator=generator).tolist()
    cut = min(max(1, length // 3), length)
    return {
        "input_ids": ids,
        "labels": [-100] * cut + ids[cut:],
        "task_ids": [seed % 3] * length,
        "position_ids": list(range(length)),
    }


def rows_of_segments():
    return [
        [segment(length, 10 * row + index) for index, length in enumerate(lengths)]
        for row, lengths in enumerate(LENGTHS)
    ]


def joined(segments):
    return {key: [value for item in segments for value in item[key]] for key in segments[0]}


@pytest.fixture(params=MODELS)
def make(request):
    return MODELS[request.param]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("flatten", [False, True])
def test_packed_equals_unpacked(make, attention, flatten):
    results = []
    for packed in (True, False):
        model = make()
        model.set_attn_implementation(attention)
        rows = rows_of_segments()
        if packed:
            batches = [Collator(0, packed=True, flatten=flatten)([joined(row) for row in rows])]
        else:
            batches = [Collator(0)([item]) for row in rows for item in row]
        losses = []
        for batch in batches:
            labels = batch.pop("labels")
            batch.pop("task_ids")
            losses.append(token_losses(model, batch, labels)[0])
        torch.cat(losses).sum().backward()
        results.append((torch.cat(losses).detach(), [p.grad for p in model.parameters()]))
    (packed_losses, packed_grads), (losses, grads) = results
    assert len(losses) == sum(label != -100 for row in rows_of_segments() for item in row for label in item["labels"])
    torch.testing.assert_close(packed_losses, losses, rtol=1e-5, atol=1e-5)
    for packed_grad, grad in zip(packed_grads, grads, strict=True):
        torch.testing.assert_close(packed_grad, grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_of_each_segment_equal_those_of_the_segment_alone(make, attention):
    model = make()
    model.set_attn_implementation(attention)
    rows = rows_of_segments()
    batch = Collator(0, packed=True)([joined(row) for row in rows])
    with torch.no_grad():
        packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        for index, row in enumerate(rows):
            start = 0
            for item in row:
                alone = model(input_ids=torch.tensor([item["input_ids"]]), use_cache=False).logits[0]
                end = start + len(item["input_ids"])
                torch.testing.assert_close(packed[index, start:end], alone, rtol=1e-5, atol=1e-5)
                start = end


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("flatten", [False, True])
def test_the_probe_accepts_models_that_separate_segments(make, dtype, flatten):
    check_packing(make().to(dtype), Collator(0, packed=True, flatten=flatten))


def test_the_probe_rejects_a_model_that_ignores_positions(make):
    model = make()
    forward = model.forward

    def leaking(*args, position_ids=None, **kwargs):
        return forward(*args, position_ids=torch.arange(position_ids.shape[1])[None], **kwargs)

    model.forward = leaking
    with pytest.raises(
        InputError, match=r"does not keep the segments of a packed row apart.*set data.packing to false"
    ):
        check_packing(model, Collator(0, packed=True))


def test_the_probe_rejects_positions_that_go_on_from_the_preceding_segment():
    """The contents of the preceding segments change nothing here, only their lengths."""
    model = make_gpt2()
    forward = model.forward

    def separate(*args, position_ids=None, **kwargs):
        segments = (position_ids == 0).cumsum(1)
        seen = (segments[:, None, :, None] == segments[:, None, None, :]).tril()
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        return forward(*args, attention_mask=mask, position_ids=position_ids + 5 * (segments - 1), **kwargs)

    model.forward = separate
    with pytest.raises(InputError, match="does not keep the segments of a packed row apart"):
        check_packing(model, Collator(0, packed=True))


def test_the_probe_accepts_a_real_bfloat16_base():
    """Its rounding changes single logits by up to a quarter of their standard deviation."""
    folder = os.environ.get("MULTILORA_GEMMA")
    if not folder:
        pytest.skip("MULTILORA_GEMMA names no folder")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    check_packing(model, Collator(0, packed=True))


def test_a_state_space_model_is_rejected():
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, state_size=4)
    with pytest.raises((InputError, TypeError), match=r"apart|position_ids"):
        check_packing(MambaForCausalLM(config), Collator(0, packed=True))


@pytest.mark.parametrize("name", ["flash_attention_2", "kernels-community/flash-attn2", "paged|flash_attention_2"])
def test_flash_attention_gets_the_rows_as_one_sequence(name, tokenizer):
    model = make_llama()
    rows = [joined(row) for row in rows_of_segments()]
    assert len(collator_for(model, tokenizer, packed=True)(rows)["input_ids"]) == len(rows)
    model.config._attn_implementation = name
    assert len(collator_for(model, tokenizer, packed=True)(rows)["input_ids"]) == 1
    assert len(collator_for(model, tokenizer, packed=False)(rows)["input_ids"]) == len(rows)


def test_the_probe_notices_what_leaks_only_in_batches(make):
    """Flash attention tells segments apart by positions only in a batch of one."""
    model = make()
    forward = model.forward

    def leaking(*args, position_ids=None, **kwargs):
        if len(position_ids) > 1:
            position_ids = torch.arange(position_ids.shape[1]).expand_as(position_ids)
        return forward(*args, position_ids=position_ids, **kwargs)

    model.forward = leaking
    check_packing(model, Collator(0, packed=True, flatten=True))
    with pytest.raises(InputError, match="does not keep the segments of a packed row apart"):
        check_packing(model, Collator(0, packed=True))
