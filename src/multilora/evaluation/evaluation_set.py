"""The examples that a task is scored on, and the solved examples (shots) before each of them.

The shots of a question do not depend on it but only on its group, so the engine computes them once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from multilora.data.mixture import generator
from multilora.data.render import Renderer
from multilora.errors import DataError
from multilora.example import Example
from multilora.tasks.base import Kind, Task
from multilora.tasks.splits import load_split


@dataclass(frozen=True)
class EvaluationSet:
    """What a task is scored on.

    task: of the examples
    examples: to be answered
    shots: group of the examples (see `Example`) -> solved examples, in order; none without few-shot prompts
    loss_only: whether the model does not answer, because another protocol scores the task
    """

    task: Task
    examples: Sequence[Example]
    shots: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    loss_only: bool = False

    @property
    def kind(self) -> Kind:
        """How the model answers, see `Task`."""
        return "loss" if self.loss_only else self.task.kind

    @property
    def shot_count(self) -> int:
        """The number of shots of every question."""
        return max(map(len, self.shots.values()), default=0)

    def prompt_of(self, renderer: Renderer, example: Example, count: int) -> str:
        """Return the prompt of an example behind the first `count` of its shots."""
        shots = self.shots.get(example["group"], ())[:count]
        if not shots:
            return example["prompt"]
        head = self.task.head_of(example)
        pairs = [(shot["prompt"].removeprefix(head), shot["response"]) for shot in shots]
        return head + renderer.with_shots(pairs, example["prompt"].removeprefix(head))


def shots_of(
    task: Task, evaluated: Sequence[Example], count: int, validation_share: float | None = None
) -> dict[str, list[Example]]:
    """Choose the shots of every group of examples.

    They are the task's own (`Task.fixed_shots`), or drawn from the training split with a fixed seed. Training examples
    with the prompt of an evaluated one are left out. Chats have no shots.

    Args:
        task: of the examples
        evaluated: all examples that can be evaluated
        count: number of shots
        validation_share: as for `load_split`

    Raises:
        DataError: there are fewer than `count` such examples.
    """
    groups = dict.fromkeys(example["group"] for example in evaluated)
    if not count or all(example["messages"] for example in evaluated):
        return {}
    fixed = {group: task.fixed_shots(group) for group in groups}
    drawn = None
    if any(shots is None for shots in fixed.values()):
        drawn = _drawn(task, {example["prompt"] for example in evaluated}, count, validation_share)
    chosen: dict[str, list[Example]] = {}
    for group, shots in fixed.items():
        available = drawn if shots is None else shots
        if available is None or len(available) < count:
            raise DataError(
                f"task {task.name!r}{f', {group}' if shots is not None and group else ''}: {len(available or [])} "
                f"examples can be shots, expected {count}; lower evaluation.shots"
            )
        chosen[group] = available[:count]
    return chosen


def _drawn(task: Task, excluded: set[str], count: int, validation_share: float | None) -> list[Example]:
    dataset = load_split(task, "train", validation_share)
    shots: list[Example] = []
    for index in generator(0, "shots", task.name).permutation(len(dataset)):
        example: Example = dataset[int(index)]
        if not example["messages"] and example["prompt"] not in excluded:
            shots.append(example)
            if len(shots) == count:
                break
    return shots
