"""Programs that load models and adapters: their commands, and what of an adapter they do not read.

Each entry says with which version this was found out.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from multilora.export.servers.facts import AdapterFacts

Format = Literal["lora", "merged", "gguf", "mlx"]
# The values that vLLM accepts for --max-lora-rank; the smallest that is enough costs the least memory.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
VLLM_DEFAULT_RANK = 16
CAUSAL = "AutoModelForCausalLM"
STACKS = "experts in one stack"
VLLM_SAVED = {"classifier", "score"}  # modules_to_save that it reads


@dataclass(frozen=True)
class Place:
    """Where an export and its base are.

    folder: the export: a folder, or a file for GGUF
    base: folder or hub name of the base
    name: what servers call the adapter
    source: what was exported, to export it in another format
    auto_class: the class of transformers that loads the model
    """

    folder: str
    base: str
    name: str
    source: str
    auto_class: str = CAUSAL


# What an adapter may contain, in words -> whether it does.
CONTENTS: dict[str, Callable[[AdapterFacts], bool]] = {
    "modules saved whole": lambda facts: bool(facts.saved),
    "modules saved whole, except a classifier": lambda facts: bool(set(facts.saved) - VLLM_SAVED),
    "trained biases": lambda facts: facts.bias,
    "trained token embeddings": lambda facts: facts.tokens,
    "ranks that differ": lambda facts: not facts.equal_ranks,
    "a rank above 512": lambda facts: facts.rank > VLLM_RANKS[-1],
    "only a part of q_proj, k_proj and v_proj": lambda facts: facts.part_of_qkv,
    STACKS: lambda facts: facts.stacked_experts,
    "an update of the embeddings": lambda facts: facts.embeddings,
    "an update of lm_head": lambda facts: facts.head,
    "an update of a tied lm_head": lambda facts: facts.head and facts.tied,
    "an adapter folder": lambda facts: True,
    "the Conv1D layers of GPT-2": lambda facts: facts.conv1d,
}
NO_UPDATE = ("modules saved whole", "trained biases", "trained token embeddings")
Commands = Callable[[AdapterFacts | None, Place], tuple[str, ...]]


@dataclass(frozen=True)
class Consumer:
    """A program that loads models or adapters.

    tried: the version whose output was compared with the original's, or whose source was read
    loads: format of the export -> commands that use it
    refuses: contents of an adapter (keys of `CONTENTS`) that it refuses, drops or reads wrongly
    untried: contents that were not tried with it
    any_task: whether it also loads models that generate no text
    """

    name: str
    tried: str
    loads: Mapping[Format, Commands]
    refuses: tuple[str, ...] = ()
    untried: tuple[str, ...] = ()
    any_task: bool = False


def vllm_rank(rank: int) -> int:
    """Return the smallest value of vLLM's --max-lora-rank for a rank.

    Raises:
        ValueError: none is large enough.
    """
    fitting = [value for value in VLLM_RANKS if value >= rank]
    if not fitting:
        raise ValueError(f"the rank is {rank}, expected at most {VLLM_RANKS[-1]}")
    return fitting[0]


def _shell(*template: str) -> Commands:
    """Return commands with the quoted fields of a `Place` filled in."""

    def commands(facts: AdapterFacts | None, place: Place) -> tuple[str, ...]:
        fields = {name: shlex.quote(value) for name, value in vars(place).items()}
        return tuple(line.format(**fields) for line in template)

    return commands


def _python(*template: str) -> Commands:
    """Return lines of Python with the fields of a `Place`, and `weights`, the file of an adapter, filled in."""

    def lines(facts: AdapterFacts | None, place: Place) -> tuple[str, ...]:
        values = {**vars(place), "weights": f"{place.folder}/adapter_model.safetensors"}
        fields = {name: json.dumps(value) for name, value in values.items()} | {"auto_class": place.auto_class}
        return tuple(line.format(**fields) for line in template)

    return lines


def _vllm(facts: AdapterFacts | None, place: Place) -> tuple[str, ...]:
    rank = vllm_rank(facts.rank if facts else 1)
    flag = f" --max-lora-rank {rank}" if rank > VLLM_DEFAULT_RANK else ""
    return _shell(f"vllm serve {{base}} --enable-lora{flag} --lora-modules {{name}}={{folder}}")(facts, place)


def _onnx(source: Literal["base", "folder"], more: str = "") -> Commands:
    def commands(facts: AdapterFacts | None, place: Place) -> tuple[str, ...]:
        option = "-i" if source == "folder" or Path(place.base).is_dir() else "-m"  # a folder, or a name on the hub
        builder = "python -m onnxruntime_genai.models.builder"
        return _shell(f"{builder} {option} {{{source}}} -o onnx -p fp32 -e cpu{more}")(facts, place)

    return commands


_SGLANG = "python -m sglang.launch_server --model-path"
CONSUMERS = (
    Consumer(
        "PEFT",
        "PEFT 0.21, transformers 5.23",
        {
            "lora": _python(
                "from peft import PeftModel",
                "from transformers import {auto_class}",
                "base = {auto_class}.from_pretrained({base})",
                "model = PeftModel.from_pretrained(base, {folder})",
            ),
        },
        any_task=True,
    ),
    Consumer(
        "transformers",
        "transformers 5.23",
        {
            "merged": _python(
                "from transformers import {auto_class}", "model = {auto_class}.from_pretrained({folder})"
            ),
        },
        any_task=True,
    ),
    Consumer(
        "transformers serve",
        "5.23",
        {
            "lora": _shell("transformers serve {folder}"),
            "merged": _shell("transformers serve {folder}"),
        },
        refuses=("an adapter folder",),  # it looks for the config.json of a model
    ),
    Consumer(
        "vLLM",
        "0.32 on a CPU",
        {"lora": _vllm, "merged": _shell("vllm serve {folder}")},
        refuses=(
            "modules saved whole, except a classifier",
            "trained biases",
            "trained token embeddings",
            STACKS,  # unless --enable-mixed-moe-lora-format, which does not notice a wrong layout
            "the Conv1D layers of GPT-2",
            "a rank above 512",
        ),
        untried=("an update of the embeddings", "an update of lm_head"),
    ),
    Consumer(
        "SGLang",
        "0.5.23, its source",
        {
            "lora": _shell(f"{_SGLANG} {{base}} --enable-lora --lora-paths {{name}}={{folder}}"),
            "merged": _shell(f"{_SGLANG} {{folder}}"),
        },
        refuses=("ranks that differ", "only a part of q_proj, k_proj and v_proj"),
        untried=(
            *NO_UPDATE,
            STACKS,
            "an update of the embeddings",
            "an update of lm_head",
            "the Conv1D layers of GPT-2",
        ),
    ),
    Consumer(
        "llama.cpp",
        "its converter and llama-cpp-python 0.3.36",
        {
            "lora": _shell("multilora export {source} --to gguf --out {name}.gguf"),
            "merged": _shell("python convert_hf_to_gguf.py {folder} --outfile {name}.gguf"),
            "gguf": _shell(
                "python convert_hf_to_gguf.py {base} --outfile base.gguf",
                "llama-server -m base.gguf --lora {folder}",
            ),
        },
        refuses=(
            *NO_UPDATE,
            "an update of the embeddings",
            "an update of a tied lm_head",
            "the Conv1D layers of GPT-2",
        ),
    ),
    Consumer(
        "Ollama",
        "its source",
        {
            "gguf": _shell(
                "printf 'FROM ./base.gguf\\nADAPTER %s\\n' {folder} > Modelfile", "ollama create {name} -f Modelfile"
            ),
        },
    ),
    Consumer(
        "MLX",
        "mlx-lm 0.32",
        {
            "lora": _shell("multilora export {source} --to mlx --out {name}-mlx"),
            "merged": _shell("mlx_lm.server --model {folder}"),
            "mlx": _shell("mlx_lm.server --model {base} --adapter-path {folder}"),
        },
        refuses=(*NO_UPDATE, "an update of a tied lm_head", "the Conv1D layers of GPT-2"),
    ),
    Consumer(
        "OpenVINO GenAI",
        "2026.4",
        {
            "lora": lambda facts, place: (
                *_shell("optimum-cli export openvino --model {base} base-openvino")(facts, place),
                *_python(
                    "from openvino_genai import Adapter, AdapterConfig, LLMPipeline",
                    "adapters = AdapterConfig(Adapter({weights}))",
                    'model = LLMPipeline("base-openvino", "CPU", adapters=adapters)',
                )(facts, place),
            ),
            "merged": _shell("optimum-cli export openvino --model {folder} {name}-openvino"),
        },
        refuses=("an update of lm_head",),
        untried=(*NO_UPDATE, STACKS, "an update of the embeddings", "the Conv1D layers of GPT-2"),
    ),
    Consumer(
        "ONNX Runtime GenAI",
        "0.18",
        {"lora": _onnx("base", " --extra_options adapter_path={folder}"), "merged": _onnx("folder")},
        untried=(
            *NO_UPDATE,
            STACKS,
            "an update of the embeddings",
            "an update of lm_head",
            "the Conv1D layers of GPT-2",
        ),
    ),
    Consumer(
        "CTranslate2",
        "4.8",
        {"merged": _shell("ct2-transformers-converter --model {folder} --output_dir {name}-ct2")},
    ),
)
