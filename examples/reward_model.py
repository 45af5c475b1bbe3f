"""Train a reward model with TRL: a language model with one output that scores texts.

The base is the embedded one, so that the script needs no download. Needs `pip install 'multilora[trl]'`.

Run: python examples/reward_model.py [FOLDER]
"""

import sys

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from multilora import MultiLoraConfig, export_lora
from multilora.nano import NANO_DIR

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/reward_model"
torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(NANO_DIR)
base = AutoModelForSequenceClassification.from_pretrained(NANO_DIR, num_labels=1, dtype=torch.float32)
base.config.pad_token_id = tokenizer.pad_token_id
words = ["red", "cat", "tree", "king", "milk", "blue", "dog", "sun"]
pairs = Dataset.from_list(
    [{"chosen": f"say {word}: {word} .", "rejected": f"say {word}: {word} {word} ."} for word in words * 4]
)
trainer = RewardTrainer(
    model=base,
    args=RewardConfig(
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
    # `SEQ_CLS` makes PEFT train and save the new head as well.
    peft_config=MultiLoraConfig(r=4, num_branches=3, target_modules="all-linear", task_type="SEQ_CLS"),
)
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
print("plain LoRA in", export_lora(trainer.model, f"{folder}/lora"))
