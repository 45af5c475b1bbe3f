"""Options of generation, by their usual names."""

from __future__ import annotations

from dataclasses import dataclass

from multilora.errors import InputError


@dataclass(frozen=True)
class GenerationOptions:
    """How a model generates text; the same options and seed give the same text.

    max_new_tokens: maximum length of a response in tokens
    temperature: 0 for the most likely token at every step, else the logits are divided by it and a token is drawn
    top_p: draw from the most likely tokens that together have this probability; 1 for all
    top_k: draw from this many most likely tokens; 0 for all
    repetition_penalty: more than 1 makes tokens that were already used less likely
    seed: of the random numbers
    stop: texts that end a response and are not part of it

    Raises:
        InputError: an option has no effect. Options out of range are reported when text is generated.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sampling = {"top_p": (self.top_p, 1.0), "top_k": (self.top_k, 0), "seed": (self.seed, 0)}
        given = [f"{name} {value}" for name, (value, default) in sampling.items() if value != default]
        if self.temperature == 0 and given:
            raise InputError(
                f"{' and '.join(given)} {'has' if len(given) == 1 else 'have'} no effect with temperature 0, which "
                "always takes the most likely token; set a temperature, such as 0.7"
            )
