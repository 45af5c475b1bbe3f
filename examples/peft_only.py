"""Use MultiLoRA as a plain PEFT method in your own training loop.

Run: python examples/peft_only.py
"""

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from multilora import MultiLoraConfig  # the import registers the method
from multilora.nano import NANO_DIR

tokenizer = AutoTokenizer.from_pretrained(NANO_DIR)
base = AutoModelForCausalLM.from_pretrained(NANO_DIR, dtype=torch.float32)
model = get_peft_model(base, MultiLoraConfig(r=8, num_branches=3, target_modules="all-linear"))
model.print_trainable_parameters()

batch = tokenizer(["the words red cat tree in reverse order are tree cat red ."], return_tensors="pt")
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=5e-3)
for step in range(20):
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 5 == 0:
        print(f"step {step}: loss {loss.item():.3f}")
