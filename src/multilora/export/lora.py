"""MultiLoRA as a plain LoRA of rank n*r, exactly.

Folding the scales gives B_eff (`multilora.functional`), and B_eff A is a LoRA with rank n*r and alpha = n*r, so that
its constant is 1. No decomposition, no rounding beyond the products that fold the scales.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor

from multilora.errors import AdapterError, RunDirectoryError
from multilora.files import whole_folder
from multilora.peft_method import MultiLoraConfig, MultiLoraLayer

WEIGHTS_FILE = "adapter_model.safetensors"


def lora_state(model: PeftModel, adapter_name: str = "default") -> tuple[LoraConfig, dict[str, Tensor]]:
    """The LoRA config and checkpoint entries equal to a MultiLoRA adapter.

    Entries that are not branches (trained biases, `modules_to_save`) are passed on as they are.

    Raises:
        AdapterError: the adapter is not MultiLoRA.
    """
    from peft import get_peft_model_state_dict

    config = model.peft_config.get(adapter_name)
    if not isinstance(config, MultiLoraConfig):
        kind = "absent" if config is None else type(config).__name__
        raise AdapterError(
            f"adapter {adapter_name!r} is {kind}, and only MultiLoRA is converted; export it merged, "
            "or use it as it is if it is already a LoRA"
        )
    ranks: dict[str, int] = {}
    state: dict[str, Tensor] = {}
    branch_keys: set[str] = set()
    for name, module in model.get_base_model().named_modules():
        if not isinstance(module, MultiLoraLayer) or adapter_name not in module.multilora_A:
            continue
        with torch.no_grad():
            down, up = module.effective_factors(adapter_name)
        key = f"base_model.model.{name}"
        branch_keys |= {f"{key}.{part}" for part in module.adapter_layer_names}
        # The scales are folded in float32 and stay there: casting B_eff down would lose what they say.
        state[f"{key}.lora_A.weight"] = down.detach().cpu().clone()
        state[f"{key}.lora_B.weight"] = up.detach().cpu().contiguous()
        ranks[name] = down.shape[0]
    saved = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    state |= {key: value.detach().cpu() for key, value in saved.items() if key not in branch_keys}
    return _lora_config(config, ranks), state


def _lora_config(config: MultiLoraConfig, ranks: dict[str, int]) -> LoraConfig:
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    others = {f"^{name}": rank for name, rank in ranks.items() if rank != common}
    return LoraConfig(
        r=common,
        lora_alpha=common,
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
        bias="lora_only" if config.bias == "multilora_only" else config.bias,
        modules_to_save=config.modules_to_save,
        trainable_token_indices=config.trainable_token_indices,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        inference_mode=True,
    )


def export_lora(source: Any, out: str | Path, adapter_name: str = "default") -> Path:
    """Write a MultiLoRA adapter as a plain LoRA adapter that stock PEFT loads.

    Args:
        source: a `Run`, a run directory, or a `PeftModel`
        out: a new folder
        adapter_name: the adapter of a `PeftModel`

    Returns:
        the folder

    Raises:
        AdapterError: not a MultiLoRA adapter.
        RunDirectoryError: `out` is taken, or `source` is not a finished run.
    """
    from multilora.rundir import Run, check_free

    out = Path(out)
    check_free(out)
    if isinstance(source, str | Path):
        source = Run(source)
    if isinstance(source, Run):
        if source.recipe.adapter.method == "full":
            raise RunDirectoryError(f"{source.path}: trained all weights, which is not a LoRA; export it merged")
        source = source.load_model()
    config, state = lora_state(source, adapter_name)
    with whole_folder(out) as folder:
        config.save_pretrained(str(folder))
        save_file(state, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
    return out
