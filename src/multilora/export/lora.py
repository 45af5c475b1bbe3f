"""Export MultiLoRA as a plain LoRA of rank n*r.

The scales are folded into the up-projections, which gives B_eff (`multilora.functional`). B_eff A is then a LoRA of
rank n*r with alpha = n*r, that is, with scaling 1. This is exact except for rounding in the folding: there is no
decomposition.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import Tensor

from multilora.errors import AdapterError, RunDirectoryError
from multilora.export.folder import new_folder
from multilora.export.in_memory import NOT_EQUAL, load_lora, verify_in_memory
from multilora.export.prompts import run_prompts
from multilora.export.verify import (
    LOOSEST,
    TOLERANCES,
    Verification,
    check_files,
    check_finite,
    compare,
    float32,
    prompt_logits,
)
from multilora.foreign_errors import own_errors
from multilora.methods import FULL
from multilora.peft_method import MultiLoraConfig, MultiLoraLayer, ParamWrapper
from multilora.runs.directory import Run

WEIGHTS_FILE = "adapter_model.safetensors"


def lora_state(
    model: PeftModel, adapter_name: str = "default", *, save_embedding_layers: bool | str = "auto"
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Return the LoRA config and the checkpoint entries that are equivalent to a MultiLoRA adapter.

    Entries other than branches (trained biases, `modules_to_save`) are copied unchanged. `save_embedding_layers` is
    passed to PEFT: `"auto"` adds the embeddings of a resized vocabulary.

    Raises:
        AdapterError: the adapter is not MultiLoRA.
    """
    config = model.peft_config.get(adapter_name)
    if not isinstance(config, MultiLoraConfig):
        problem = "does not exist" if config is None else f"has a {type(config).__name__}"
        raise AdapterError(
            f"adapter {adapter_name!r} {problem}, expected a MultiLoraConfig; export it merged, or use it unchanged if "
            "it is already a LoRA"
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
        ranks[module.full_name(name) if isinstance(module, ParamWrapper) else name] = down.shape[-2]
        if down.dim() == 3:  # PEFT's layout for stacked experts: [experts * rank, d_in] and [d_out, rank * experts]
            down, up = down.flatten(0, 1), up.permute(1, 2, 0).flatten(1)
        # The scales are folded in float32. Casting B_eff to a lower precision would round them away.
        state[f"{key}.lora_A.weight"] = down.detach().cpu().clone()
        state[f"{key}.lora_B.weight"] = up.detach().cpu().contiguous()
    saved = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=save_embedding_layers)
    state |= {key: value.detach().cpu() for key, value in saved.items() if key not in branch_keys}
    return _lora_config(config, ranks), state


def _lora_config(config: MultiLoraConfig, ranks: dict[str, int]) -> LoraConfig:
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    rank_pattern = {rf"^{re.escape(name)}$": rank for name, rank in ranks.items() if rank != common}
    return LoraConfig(
        r=common,
        lora_alpha=common,
        lora_dropout=config.lora_dropout,
        rank_pattern=rank_pattern,
        alpha_pattern=dict(rank_pattern),
        target_modules=config.target_modules,
        target_parameters=config.target_parameters,
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


def convert_to_lora(model: PeftModel) -> PeftModel:
    """Convert every MultiLoRA adapter of a model into a LoRA adapter of the same name, exactly.

    The result supports PEFT's LoRA-only features, such as `add_weighted_adapter`. It reuses the base modules of
    `model`, which must not be used afterwards.

    Raises:
        AdapterError: an adapter is not MultiLoRA or is merged into the base.
    """
    _check_unmerged(model, "convert_to_lora")
    active, training = list(model.active_adapters), model.training
    adapters = {name: lora_state(model, name, save_embedding_layers=False) for name in model.peft_config}
    trainable = any(parameter.requires_grad for name, parameter in model.named_parameters() if "multilora_" in name)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.set_adapter([])  # else `unload` keeps the active adapter's copy in the base
    lora: PeftModel | None = None
    base = model.unload()
    for name, (config, state) in adapters.items():
        config.inference_mode = model.peft_config[name].inference_mode
        if lora is None:
            lora = get_peft_model(base, config, adapter_name=name)
        else:
            lora.add_adapter(name, config)
        set_peft_model_state_dict(lora, state, adapter_name=name)
    assert lora is not None
    lora.set_adapter(active[0], inference_mode=not trainable)
    if len(active) > 1:
        lora.base_model.set_adapter(active, inference_mode=not trainable)
    return lora.train(training)


@own_errors
def export_lora(source: Any, out: str | Path, adapter_name: str = "default") -> Path:
    """Write a MultiLoRA adapter as a plain LoRA adapter that stock PEFT loads.

    The export is verified, see `multilora.export.verify`.

    Args:
        source: a `Run`, a run directory, or a `PeftModel`
        out: a new folder
        adapter_name: the adapter of a `PeftModel`

    Returns:
        the folder

    Raises:
        AdapterError: not a MultiLoRA adapter, it is merged into the base, or a weight is NaN or infinite.
        RunDirectoryError: `out` is taken or cannot be written, or `source` is not a finished run.
        RunError: the export differs from the original; nothing is written.
    """
    write_lora(source, out, adapter_name)
    return Path(out)


def write_lora(source: Any, out: str | Path, adapter_name: str = "default") -> Verification | None:
    """Do the work of `export_lora`; returns the verification, or None if the model of a `PeftModel` reads no tokens."""
    if isinstance(source, str | Path):
        source = Run(source)
    if isinstance(source, Run) and source.recipe.adapter.method == FULL:
        raise RunDirectoryError(f"{source.path}: method `full` has no adapter to convert; export it merged")
    with new_folder(Path(out)) as folder:
        if isinstance(source, Run):
            return _write_run(source, folder)
        _check_unmerged(source, "export_lora")
        state = _write(source, folder, adapter_name)
        return verify_in_memory(source, folder, adapter_name, state)


def _write_run(run: Run, folder: Path) -> Verification:
    prompts = run_prompts(run)
    model = run.load_model()
    _write(model, folder, "default")
    quantized = getattr(model, "is_quantized", False)
    tolerance = LOOSEST if quantized else TOLERANCES[torch.float32]

    def logits(model: Any) -> list[Tensor]:
        with nullcontext() if quantized else float32(model):
            return prompt_logits(model, prompts)

    reference = logits(model)
    del model
    lora = load_lora(run.load_base(), folder)
    return compare(logits(lora), reference, prompts, tolerance, NOT_EQUAL)


def _write(model: PeftModel, folder: Path, adapter_name: str) -> dict[str, Tensor]:
    config, state = lora_state(model, adapter_name)
    check_finite(get_peft_model_state_dict(model, adapter_name=adapter_name))
    check_finite(state)  # folding may overflow
    config.save_pretrained(str(folder))
    save_file(state, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
    check_files(folder, state)
    return state


def _check_unmerged(model: PeftModel, action: str) -> None:
    if any(module.merged_adapters for module in model.modules() if isinstance(module, MultiLoraLayer)):
        raise AdapterError(f"{action}: the adapters are merged into the base; call model.unmerge_adapter() first")
