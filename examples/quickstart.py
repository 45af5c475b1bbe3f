"""Train MultiLoRA on two tasks with the embedded base, evaluate it, analyse the update, export it as a plain LoRA.

Run: python examples/quickstart.py [FOLDER]
"""

import sys
from pathlib import Path

import multilora

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
recipe = {
    "model": {"name_or_path": "nano", "dtype": "float32"},
    "adapter": {"method": "multilora", "r": 8, "num_branches": 3},
    "tasks": [
        {"name": "nano/instructions", "max_examples": 1000},
        {"name": "nano/arithmetic", "max_examples": 1000},
    ],
    "training": {"max_steps": 40, "learning_rate": 5e-3, "per_device_train_batch_size": 16},
    "output_dir": str(folder / "run"),
}
run = multilora.train(recipe)
scores = multilora.evaluate(run, max_examples=50)
for task, after in scores.after.items():
    print(f"{task}: loss {scores.before[task].loss:.3f} -> {after.loss:.3f}")
print(f"effective rank of the update: {multilora.analyze(run).mean()['effective_rank']:.1f}")
print("plain LoRA adapter in", multilora.export_lora(run, folder / "lora"))
