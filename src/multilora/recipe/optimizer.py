"""The section `optimizer` of a recipe."""

from __future__ import annotations

from pydantic import Field

from multilora.recipe.section import Section

# With it, MultiLoRA's best learning rates are near those of LoRA, and its losses as low as with any other factor: see
# the studies in docs/results.md.
SCALE_LR_FACTOR = 5.0


class OptimizerSection(Section):
    """Learning rates per kind of parameter; everything else about the optimizer is under `training`."""

    scale_lr_factor: float | None = Field(
        None,
        gt=0,
        description="learning rate of MultiLoRA's scales divided by training.learning_rate; by default 5, with which "
        "the best rates are near LoRA's, or 1 with adapter.init_weights lora; the paper has 1",
    )
    up_lr_factor: float = Field(
        1.0, gt=0, description="learning rate of the up-projections B divided by training.learning_rate (LoRA+)"
    )
    down_lr_factor: float = Field(
        1.0, ge=0, description="learning rate of the down-projections A divided by training.learning_rate; 0 freezes A"
    )
    scale_steps: int | None = Field(None, ge=1, description="train MultiLoRA's scales in the first so many steps only")
    muon: bool = Field(False, description="Muon, not AdamW, for every branch's factors A and B (multilora and lora)")

    def scale_factor(self, method: str, init_weights: object) -> float:
        """`scale_lr_factor`, or its default for an adapter of this method and initialisation."""
        if self.scale_lr_factor is not None:
            return self.scale_lr_factor
        return SCALE_LR_FACTOR if method == "multilora" and init_weights != "lora" else 1.0
