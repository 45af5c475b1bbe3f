"""Tiny models and tokenizers, created from configs; nothing is downloaded."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

REPOSITORY = Path(__file__).resolve().parents[1]
# Real data in its public formats, if there is a folder `shared/` next to the checkout; tests are skipped without it.
REAL_DATA = REPOSITORY.parent / "shared" / "data"

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Keep the garbage collector, which accelerate calls in every training, from looking through all the libraries."""
    gc.freeze()


def make_tokenizer(**special: str) -> Any:
    """Create a byte-level BPE tokenizer; by default with <pad> 0, <s> 1, </s> 2."""
    special = special or {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ["### Instruction: ### Response: the answer to the question is yes or no and one two three four five"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(dict.fromkeys(special.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_llama(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Create a two-layer LLaMA with random weights and a fixed seed."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = LlamaConfig(**{**settings, **options})
    return LlamaForCausalLM(config).to(dtype).eval()


def make_gpt2() -> Any:
    """Create a two-layer GPT-2, whose linear layers are `Conv1D`."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=128, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return GPT2LMHeadModel(config).eval()


def make_qwen3_moe() -> Any:
    """Create a two-layer Qwen3-MoE: the four experts of a layer are two stacked parameters, [experts, d_out, d_in]."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
    )
    return Qwen3MoeForCausalLM(config).eval()


def make_gpt_oss() -> Any:
    """Create a two-layer GPT-OSS, whose stacked experts are transposed: [experts, d_in, d_out]."""
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=["full_attention"] * 2,
    )
    return GptOssForCausalLM(config).eval()


def randomise(model: Any, adapter_name: str = "default", seed: int = 1) -> None:
    """Set an adapter's scales to random values, so that it has an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "multilora_scale" in name and name.endswith(adapter_name):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="session", autouse=True)
def _isolated_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use a separate datasets cache for the tests and the processes that they start."""
    import datasets

    folder = tmp_path_factory.mktemp("datasets-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        yield


@pytest.fixture
def new_process() -> None:
    """Prove exports in a process of their own, as outside of the tests."""


@pytest.fixture(autouse=True)
def _same_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prove exports in this process, on little text: another one needs seconds to import torch and transformers."""
    if "new_process" in request.fixturenames:
        return
    from multilora.export.proof import outputs as proof_outputs
    from multilora.export.proof import prove as proof

    def run_script(exchange: Path) -> str | None:
        try:
            proof_outputs.answer(exchange)
        except Exception as error:
            return str(error)
        return None

    monkeypatch.setattr(proof, "_run_script", run_script)
    monkeypatch.setattr(proof_outputs, "NEW_TOKENS", 4)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Folder with a saved tiny LLaMA and its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    make_llama().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def numbered(record: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Records that differ only in a field that nothing reads."""
    return [{**record, "number": index} for index in range(count)]


@pytest.fixture
def recipe(tmp_path: Path, model_folder: Path) -> dict[str, Any]:
    """A small complete recipe with two custom tasks, one with choices and one with free text."""
    return make_recipe(tmp_path, model_folder)


def make_recipe(folder: Path, model_folder: Path) -> dict[str, Any]:
    """The recipe of the fixture, with its data and its run in a folder."""
    yes_no = [{"question": f"is {i} even", "answer": "yes" if i % 2 == 0 else "no", "shown": str(i)} for i in range(40)]
    echo = [{"word": f"item{i}", "twice": f"item{i} item{i}"} for i in range(24)]
    write_jsonl(folder / "even.jsonl", yes_no)
    write_jsonl(folder / "echo.jsonl", echo)
    return {
        "model": {"name_or_path": str(model_folder), "dtype": "float32"},
        "adapter": {"method": "multilora", "r": 2, "num_branches": 3},
        "tasks": [
            {
                "name": "even",
                "path": str(folder / "even.jsonl"),
                "prompt": "{{ question }}?",
                "response": "{{ answer }}",
                "choices": ["yes", "no"],
            },
            {
                "name": "echo",
                "path": str(folder / "echo.jsonl"),
                "prompt": "say {{ word }} twice",
                "response": "{{ twice }}",
            },
        ],
        "data": {"max_length": 128},
        "training": {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.01, "logging_steps": 1},
        "evaluation": {"max_new_tokens": 8},
        "output_dir": str(folder / "run"),
    }
