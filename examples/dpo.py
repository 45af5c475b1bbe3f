"""Direct preference optimisation (DPO) with TRL: the reference model is the base without the adapter.

The base is the embedded one, so that the script needs no download. Needs `pip install 'multilora[trl]'`.

Run: python examples/dpo.py [FOLDER]
"""

import sys

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from multilora import MultiLoraConfig, export_lora
from multilora.nano import NANO_DIR

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/dpo"
base = AutoModelForCausalLM.from_pretrained(NANO_DIR, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(NANO_DIR)
# Short answers are preferred.
words = ["red", "cat", "tree", "king", "milk", "blue", "dog", "sun"]
pairs = Dataset.from_list(
    [{"prompt": f"say {word}:", "chosen": f" {word} .", "rejected": f" {word} {word} {word} ."} for word in words * 4]
)
trainer = DPOTrainer(
    model=base,
    args=DPOConfig(
        folder,
        max_steps=12,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        max_length=32,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    ),
    train_dataset=pairs,
    processing_class=tokenizer,
    peft_config=MultiLoraConfig(r=4, num_branches=3, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
print("plain LoRA in", export_lora(trainer.model, f"{folder}/lora"))
