"""Train the attention of a diffusers UNet to predict noise, and load the result in diffusers as a LoRA.

The model is a tiny UNet with random weights, so that the script needs no download. Replace it by
`UNet2DConditionModel.from_pretrained(NAME, subfolder="unet")` and the latents by your own.

Needs `pip install diffusers`.

Run: python examples/diffusers_unet.py
"""

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import get_peft_model, get_peft_model_state_dict

from multilora import MultiLoraConfig, convert_to_lora


def make_unet() -> UNet2DConditionModel:
    """The same random UNet each time."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )


# MultiLoRA adapts linear layers: the projections of the attention and the feed-forward layers, not the convolutions.
targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
model = get_peft_model(make_unet(), MultiLoraConfig(r=4, num_branches=3, target_modules=targets))
scheduler = DDPMScheduler()
latents, texts = torch.randn(16, 4, 8, 8), torch.randn(16, 6, 16)
noise, times = torch.randn_like(latents), torch.randint(0, scheduler.config.num_train_timesteps, (16,))
noisy = scheduler.add_noise(latents, noise, times)

optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-2)
losses = []
for _ in range(30):
    predicted = model(noisy, times, encoder_hidden_states=texts).sample
    loss = torch.nn.functional.mse_loss(predicted, noise)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")

# diffusers loads LoRA only: convert the adapter, exactly, and hand over its weights.
with torch.no_grad():
    expected = model.eval()(noisy, times, encoder_hidden_states=texts).sample
lora = convert_to_lora(model)
weights = {name.removeprefix("base_model.model."): value for name, value in get_peft_model_state_dict(lora).items()}
unet = make_unet().eval()
unet.load_lora_adapter(weights, prefix=None)
with torch.no_grad():
    difference = (unet(noisy, times, encoder_hidden_states=texts).sample - expected).abs().max()
print(f"diffusers predicts the same within {difference:.0e}")
