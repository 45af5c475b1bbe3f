"""Train your own model with your own arguments and callbacks on the plan of a recipe; log the loss of every task.

Run: python examples/own_trainer.py [FOLDER]
"""

import sys

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments

import multilora
from multilora import MultiLoraConfig, MultiTaskTrainer
from multilora.nano import NANO_DIR


class PrintLosses(TrainerCallback):
    """Print the losses in the log."""

    def on_log(self, args, state, control, logs=None, **_):
        """Called by the Trainer whenever it logs."""
        losses = {name: round(value, 3) for name, value in logs.items() if name.startswith("loss")}
        if losses:
            print(f"step {state.global_step}: {losses}")


plan = multilora.plan(
    {
        "model": "nano",
        "tasks": [{"name": "nano/knowledge", "max_examples": 500}, {"name": "nano/arithmetic", "max_examples": 500}],
        "mixture": {"strategy": "equal", "unit": "trained_tokens"},
        "data": {"max_length": 128, "packing": True},
        "training": {"max_steps": 20, "per_device_train_batch_size": 4},
    }
)
base = AutoModelForCausalLM.from_pretrained(NANO_DIR, dtype=torch.float32)
model = get_peft_model(base, MultiLoraConfig(r=8, num_branches=3, target_modules="all-linear"))
arguments = TrainingArguments(
    output_dir=sys.argv[1] if len(sys.argv) > 1 else "runs/own_trainer",
    max_steps=plan.steps,
    per_device_train_batch_size=4,
    learning_rate=5e-3,
    logging_steps=5,
    report_to="none",
    disable_tqdm=True,
)
trainer = MultiTaskTrainer(model=model, args=arguments, plan=plan, scale_lr_factor=5, callbacks=[PrintLosses()])
trainer.train()
trainer.save_model()
