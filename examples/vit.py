"""Train an image classifier: a Vision Transformer in a training loop of your own.

The model is a tiny ViT with random weights, so that the script needs no download. Replace it by
`ViTForImageClassification.from_pretrained(NAME, num_labels=...)` and the images by your own.

Run: python examples/vit.py [FOLDER]
"""

import sys

import torch
from peft import get_peft_model
from transformers import ViTConfig, ViTForImageClassification

from multilora import MultiLoraConfig, export_merged

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/vit"
torch.manual_seed(0)
base = ViTForImageClassification(
    ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=2,
    )
)
# The label says which half of the image is brighter.
labels = torch.arange(256) % 2
images = 0.3 * torch.randn(256, 3, 16, 16)
images[labels == 0, :, :, :8] += 0.5
images[labels == 1, :, :, 8:] += 0.5

config = MultiLoraConfig(
    r=4, num_branches=3, target_modules="all-linear", exclude_modules=["classifier"], modules_to_save=["classifier"]
)
model = get_peft_model(base, config)
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
losses = []
for _ in range(40):
    rows = torch.randint(0, len(images), (32,))
    loss = model(pixel_values=images[rows], labels=labels[rows]).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
print("merged model in", export_merged(model, f"{folder}/merged"))
