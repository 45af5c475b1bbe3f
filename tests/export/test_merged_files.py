"""Safetensors files written tensor by tensor are those of the safetensors library."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from multilora.errors import InputError, RunError
from multilora.export.merged.tensor_files import NAMES, TensorWriter, new_layout, read_layout

TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(list(NAMES)), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 99)),
    max_size=6,
)


def make(dtype, shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(TENSORS, st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_library_reads_what_is_written_in_any_order(tmp_path_factory, tensors, random):
    path = tmp_path_factory.mktemp("files") / "model.safetensors"
    values = {name: make(*item) for name, item in tensors.items()}
    layout = new_layout(path, {name: (NAMES[v.dtype], tuple(v.shape)) for name, v in values.items()}, {"format": "pt"})
    order = list(values)
    random.shuffle(order)
    with TensorWriter(path, layout) as writer:
        for name in order:
            writer.write(name, values[name])
    writer.check()
    read = load_file(path)
    assert read.keys() == values.keys()
    for name, value in values.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)
    for name, slot in read_layout(path).slots.items():
        assert torch.equal(slot.read(), values[name])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.randn(4, 5), "b": torch.randn(3).bfloat16(), "c": torch.arange(6)}, path, {"format": "pt"})
    return path


def test_a_copy_is_bitwise_equal(file, tmp_path):
    layout = read_layout(file)
    with TensorWriter(tmp_path / "copy", layout) as writer:
        for name, slot in layout.slots.items():
            writer.copy(name, slot)
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()


def with_header(content: bytes, **changes):
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(header | {name: header.get(name, {}) | change for name, change in changes.items()}).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-1],
    "longer": lambda content: content + b"x",
    "a pointer of Git LFS": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "no JSON": lambda content: content[:8] + b"\xff" * (len(content) - 8),
    "a shape of another size": lambda content: with_header(content, a={"shape": [4, 6]}),
    "negative offsets": lambda content: with_header(content, a={"data_offsets": [-8, 72]}),
    "overlap": lambda content: with_header(content, b={"data_offsets": [0, 6]}),
    "no shape": lambda content: with_header(content, d={"dtype": "F32", "data_offsets": [0, 0]}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(file, damage):
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    with pytest.raises(InputError, match=r"model.safetensors: .*restore it"):
        read_layout(file)


def test_a_changed_or_missing_tensor_is_found(file, tmp_path):
    layout = read_layout(file)
    for problem in ("changed", "missing"):
        with TensorWriter(tmp_path / problem, layout) as writer:
            for name, slot in layout.slots.items():
                if problem == "changed" or name != "a":
                    writer.copy(name, slot)
        if problem == "changed":
            content = bytearray((tmp_path / problem).read_bytes())
            content[layout.slots["b"].start] ^= 1
            (tmp_path / problem).write_bytes(content)
        with pytest.raises(RunError, match=f"{problem}: [ab] differs from what was saved"):
            writer.check()


def test_a_tensor_of_another_shape_or_dtype_is_refused(file, tmp_path):
    with TensorWriter(tmp_path / "copy", read_layout(file)) as writer:
        for tensor in (torch.zeros(5, 4), torch.zeros(4, 5, dtype=torch.float64)):
            with pytest.raises(RunError, match=r"a is .* expected F32 of shape \[4, 5\]"):
                writer.write("a", tensor)
