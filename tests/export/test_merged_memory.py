"""A model larger than the memory of the process is merged shard by shard."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from safetensors import safe_open
from transformers import LlamaConfig

from multilora.export.merged.base_files import base_files

# Sets a limit on private memory (heap and anonymous maps) above what the imports need, and exports.
LIMITED = """
import resource, sys, tempfile
from pathlib import Path
import torch
torch.set_num_threads(1)
from multilora.export.merged.export_merged import merge_by_shards
from multilora.export.sources.source import open_source
adapter, out, megabytes = sys.argv[1:]
source = open_source(adapter)
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
limit = used + int(megabytes) * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    torch.empty(600 * 2**20, dtype=torch.uint8).fill_(1)
    sys.exit("the limit has no effect")
except RuntimeError:
    pass
Path(out).mkdir()
merge_by_shards(source, Path(out))
"""


def load_benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_export", REPOSITORY / "benchmarks" / "export.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts all private memory only on Linux")
def test_a_model_larger_than_the_memory_is_merged(tmp_path):
    benchmark = load_benchmark()
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16
    )
    benchmark.make_base(tmp_path / "base", config, torch.float32, 150 * 2**20)
    largest = benchmark.make_adapter(tmp_path / "adapter", tmp_path / "base", "all-linear")
    files = base_files(str(tmp_path / "base"))
    assert files.size > 600 * 2**20
    assert largest < 12 * 2**20
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "adapter"), str(tmp_path / "out"), "150"]
    subprocess.run(command, check=True)
    merged = base_files(str(tmp_path / "out"))
    assert merged.slots.keys() == files.slots.keys()
    name = "model.layers.5.mlp.down_proj.weight"
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as adapter:
        down, up, scale = (
            adapter.get_tensor(f"base_model.model.model.layers.5.mlp.down_proj.multilora_{part}")
            for part in ("A", "B", "scale")
        )
    branches = (up.unflatten(1, (3, -1)) * scale.unsqueeze(-1)).flatten(1)
    torch.testing.assert_close(merged.slots[name].read(), files.slots[name].read() + branches @ down)
