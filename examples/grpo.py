"""Reinforcement learning with TRL's GRPO and a reward function.

The base is the embedded one, so that the script needs no download. Needs `pip install 'multilora[trl]'`.

Run: python examples/grpo.py [FOLDER]
"""

import sys

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from multilora import MultiLoraConfig, export_lora
from multilora.nano import NANO_DIR

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/grpo"
base = AutoModelForCausalLM.from_pretrained(NANO_DIR, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(NANO_DIR)


def short_words(completions: list[str], **_: object) -> list[float]:
    """The share of words with at most three letters."""
    words = [text.split() for text in completions]
    return [sum(len(word) <= 3 for word in row) / max(len(row), 1) for row in words]


trainer = GRPOTrainer(
    model=base,
    reward_funcs=short_words,
    args=GRPOConfig(
        folder,
        max_steps=15,
        per_device_train_batch_size=16,
        num_generations=8,
        max_completion_length=12,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        seed=0,
    ),
    train_dataset=Dataset.from_list([{"prompt": f"the {word}"} for word in ["cat", "king", "tree", "dog"] * 8]),
    processing_class=tokenizer,
    peft_config=MultiLoraConfig(r=4, num_branches=3, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.train()
rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
print(f"reward {sum(rewards[:3]) / 3:.2f} -> {sum(rewards[-3:]) / 3:.2f}")
print("plain LoRA in", export_lora(trainer.model, f"{folder}/lora"))
