"""The recipe: every option of a run in one validated object; `Recipe.load` reports all problems together."""

from multilora.recipe.load import Recipe
from multilora.recipe.optimizer import OptimizerSection
from multilora.recipe.schema import (
    HUB_PREFIX,
    AdapterSection,
    DataSection,
    EvaluationSection,
    LossSection,
    MixtureSection,
    ModelSection,
    TaskSection,
)

__all__ = [
    "HUB_PREFIX",
    "AdapterSection",
    "DataSection",
    "EvaluationSection",
    "LossSection",
    "MixtureSection",
    "ModelSection",
    "OptimizerSection",
    "Recipe",
    "TaskSection",
]
