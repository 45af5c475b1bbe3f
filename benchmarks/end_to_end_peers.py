"""The other libraries of end_to_end.py: TRL with PEFT, LLaMA-Factory and ms-swift.

All train PEFT's LoRA on all linear layers but the output layer, without dropout and gradient checkpointing, with the
same tokens per example: prompt, response and end token. For a bfloat16 base the adapter is in float32 (for TRL also in
bfloat16, see end_to_end.py). The optimizer is the Trainer's default for all, fused AdamW; ms-swift's own defaults that
differ from the Trainer's are set back. What is left to the library: TRL and ms-swift also compute the accuracy per
token in every step, and ms-swift computes logits only where there is a label.

LLaMA-Factory and ms-swift need other versions of Transformers and PEFT than TRL, so each is run by the Python of an
environment of its own, where this library need not be installed. With a CPU build of torch, LLaMA-Factory also needs
CPU builds of torchvision and torchaudio.

Packing never lets an example attend to another:
- TRL: `packing=True`. It joins the packed rows of a step into one row; without FlashAttention, the mask covers all of
  it.
- LLaMA-Factory: `neat_packing`. It fills every row with padding to the maximum length and builds the mask of a batch
  in full.
- ms-swift: packs only with FlashAttention, which needs a GPU. Its rows stay padded here on every device.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any


def train(options: argparse.Namespace, folder: Path, clock: Any, schedule: dict[str, Any], rank: int) -> None:
    """Train on `train.jsonl` of the folder through the library that the variant names."""
    arguments = {
        **schedule,
        "bf16": options.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": options.device == "cpu",
        "disable_tqdm": True,
        "output_dir": str(folder / "run"),
    }
    library = {"llamafactory": train_llamafactory, "ms-swift": train_ms_swift}.get(options.variant, train_trl)
    library(options, folder, clock, arguments, rank)


def versions(variant: str) -> str:
    """The version of LLaMA-Factory or ms-swift and of what it trains with, read in its own environment."""
    name = {"llamafactory": "LLaMA-Factory", "ms-swift": "ms-swift"}[variant]
    others = ", ".join(f"{label} {version(label.lower())}" for label in ("torch", "Transformers", "PEFT"))
    return f"{name} {version(variant)} ({others})"


def train_trl(options: argparse.Namespace, folder: Path, clock: Any, arguments: dict[str, Any], rank: int) -> None:
    """Train with TRL's SFTTrainer."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)),
        args=SFTConfig(
            **arguments,
            max_length=options.length,
            packing=options.packing,
            padding_free=False,
            completion_only_loss=True,
        ),
        train_dataset=load_dataset("json", data_files=str(folder / "train.jsonl"), split="train"),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        peft_config=LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock.callback],
    )
    if options.variant == "trl-bfloat16":
        trainer.model.to(torch.bfloat16)
    clock.count(SFTTrainer)
    trainer.train()


def train_llamafactory(
    options: argparse.Namespace, folder: Path, clock: Any, arguments: dict[str, Any], rank: int
) -> None:
    """Train with LLaMA-Factory's `run_exp`.

    Its `empty` template adds no tokens, so the examples carry the special ones as text. It loads a base in the dtype
    that the base's config names, so it gets a copy of the config with the dtype of the run.
    """
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
    from llamafactory.train.tuner import run_exp
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    begin = tokenizer.bos_token if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else ""
    records = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [{"prompt": begin + r["prompt"], "completion": r["completion"] + tokenizer.eos_token} for r in records]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    columns = {"prompt": "prompt", "response": "completion"}
    info = {"gsm": {"file_name": "rows.json", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")

    base = folder / "base"
    base.mkdir()
    for file in options.model.resolve().iterdir():
        if file.name != "config.json":
            (base / file.name).symlink_to(file)
    config = json.loads((options.model / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    (base / "config.json").write_text(json.dumps({**config, "dtype": options.dtype}), encoding="utf-8")

    clock.count(CustomSeq2SeqTrainer)
    run_exp(
        {
            **arguments,
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": str(base),
            "disable_gradient_checkpointing": True,
            "finetuning_type": "lora",
            "lora_rank": rank,
            "lora_alpha": rank,
            "lora_dropout": 0.0,
            "lora_target": "all",
            "dataset_dir": str(folder),
            "dataset": "gsm",
            "template": "empty",
            "cutoff_len": options.length,
            "preprocessing_batch_size": max(1000, options.examples),  # examples are packed within such a group
            "neat_packing": options.packing,
        },
        [clock.callback],
    )


def train_ms_swift(options: argparse.Namespace, folder: Path, clock: Any, arguments: dict[str, Any], rank: int) -> None:
    """Train with ms-swift's `SwiftSft`. Its `dummy` template is the prompt, the response and the end token."""
    os.environ["MODELSCOPE_CACHE"] = str(folder / "cache")  # read at import
    from swift.arguments import SftArguments
    from swift.model import MODEL_MAPPING
    from swift.pipelines.train.sft import SwiftSft
    from swift.trainers import Seq2SeqTrainer

    class Run(SwiftSft):  # type: ignore[misc]
        def train(self, trainer: Any) -> Any:
            trainer.add_callback(clock.callback)
            return super().train(trainer)

    kind = json.loads((options.model / "config.json").read_text(encoding="utf-8"))["model_type"]
    clock.count(Seq2SeqTrainer)
    Run(
        SftArguments(
            **{**arguments, "report_to": ["none"]},
            fp16=False,
            adam_beta2=0.999,
            gradient_accumulation_steps=1,
            dataloader_num_workers=0,
            data_seed=options.seed,
            model=str(options.model),
            model_type=kind if kind in MODEL_MAPPING else None,
            template="dummy",
            torch_dtype=options.dtype,
            tuner_type="lora",
            lora_rank=rank,
            lora_alpha=rank,
            lora_dropout=0.0,
            target_modules=["all-linear"],
            dataset=[str(folder / "train.jsonl")],
            dataset_shuffle=False,
            max_length=options.length,
            truncation_strategy="right",
            add_version=False,
            check_model=False,
        )
    ).main()
