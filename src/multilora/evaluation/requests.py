"""What the scoring engine is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Request:
    """The token ids of a context and of a continuation whose probability is wanted; neither is empty."""

    context: list[int]
    continuation: list[int]


@dataclass(frozen=True)
class Scored:
    """The answer to a request.

    tokens: log-probability in nats of every token of the continuation, [tokens], float32 on the CPU
    greedy: whether every token of the continuation is the most likely one
    """

    tokens: Tensor
    greedy: bool

    @property
    def total(self) -> float:
        """Log-probability of the continuation in nats."""
        return float(self.tokens.double().sum())


@dataclass(frozen=True)
class Generation:
    """A generated response.

    text: without special tokens, cut before the first stop string
    tokens: number of generated tokens, including the one that ended it
    finished: whether an end token or a stop string ended it, not the limit on its length
    """

    text: str
    tokens: int
    finished: bool
