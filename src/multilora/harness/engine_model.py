"""This package's engine as a model of lm-evaluation-harness, registered there as `multilora`."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

import multilora
from multilora.errors import InputError, nearest
from multilora.evaluation.generation.generate import generate
from multilora.evaluation.requests import Request, Scored
from multilora.evaluation.scoring.likelihoods import score_requests
from multilora.harness.load import ModelArguments
from multilora.progress import progress

logger = logging.getLogger(__name__)

# Options of generation at which they have no effect; other values are refused.
_NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "use_cache": True,
}
_USED = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k")
# Texts per call of the tokenizer.
_TOKENIZED_TOGETHER = 128


@register_model("multilora")
class MultiLoraLM(TemplateLM):
    """A causal language model that answers lm-eval's requests through `score_requests` and `generate`.

    Texts become tokens as in lm-eval's own `HFLM`, whose methods are used for it, and requests that are too long lose
    the same tokens at the start. With several processes each gets all requests, and the engine shares out the work;
    lm-eval is told of one process, so that it does not share out requests too.

    Args:
        model, tokenizer: an in-memory model, instead of `arguments`
        batch_tokens: maximum tokens per forward pass; by default the engine chooses
        batch_size, max_batch_size: accepted because lm-eval always sets them, and ignored; batches are made by tokens
        max_length: maximum tokens of a request; by default that of the model
        add_bos_token: whether BOS comes first; by default the tokenizer decides
        prefix_token_id: the context of a text without one; by default BOS, or else EOS
        chat_template_args: passed to the chat template
        arguments: run, pretrained, peft, dtype, device, revision and trust_remote_code, see `ModelArguments`

    Raises:
        InputError: an unknown or contradictory argument, or something cannot be loaded.
    """

    backend = "causal"
    _DEFAULT_MAX_LENGTH = HFLM._DEFAULT_MAX_LENGTH
    eot_token_id = HFLM.eot_token_id
    prefix_token_id = HFLM.prefix_token_id
    max_length = HFLM.max_length
    max_gen_toks = HFLM.max_gen_toks
    tokenizer_name = HFLM.tokenizer_name
    tok_decode = HFLM.tok_decode
    apply_chat_template = HFLM.apply_chat_template

    def __init__(
        self,
        *,
        model: Any = None,
        tokenizer: Any = None,
        batch_tokens: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        chat_template_args: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        for name, value in (("batch_tokens", batch_tokens), ("max_length", max_length)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"model_args: {name} is {value!r}, expected a positive integer")
        if (model is None) != (tokenizer is None):
            missing = "model" if model is None else "tokenizer"
            raise InputError(f"MultiLoraLM: {missing} is missing; pass model and tokenizer together")
        if model is None:
            model, tokenizer = _arguments(arguments, add_bos_token).load()
        elif extra := sorted(arguments.keys() - {"device"}):
            raise InputError(f"MultiLoraLM: {', '.join(extra)} set beside an in-memory model; leave them out")
        self.model, self.tokenizer = model.eval(), tokenizer
        self.batch_tokens, self._max_length = batch_tokens, max_length
        self.add_bos_token, self.custom_prefix_token_id = add_bos_token, prefix_token_id
        self.chat_template_args = chat_template_args or {}
        self._device = model.device
        self._encoded: dict[str, npt.NDArray[np.int32]] = {}  # filled by `loglikelihood`, while it runs

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Return token ids as `HFLM` does."""
        if add_special_tokens is None and not options and string in self._encoded:
            known: list[int] = self._encoded[string].tolist()
            return known
        ids: list[int] = HFLM.tok_encode(self, string, add_special_tokens=add_special_tokens, **options)
        return ids

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of every continuation, and whether it is the most likely one token by token."""
        texts = {
            text: None for context, rest in (r.args for r in requests) for text in (context.rstrip(), context + rest)
        }
        self._encode_together([text for text in texts if text])
        try:
            answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        finally:
            self._encoded = {}
        return answers

    def _encode_together(self, texts: Sequence[str]) -> None:
        """Tokenize texts for `tok_encode`, each once and many at a time, which takes half the time."""
        bos = self.tokenizer.decode(self.prefix_token_id)
        for begins, added in ((True, False), (False, self.add_bos_token)):
            group = [text for text in texts if has_bos_prefix(text, bos) == begins]
            options = {} if added is None else {"add_special_tokens": added}
            for start in range(0, len(group), _TOKENIZED_TOGETHER):
                part = group[start : start + _TOKENIZED_TOGETHER]
                encoded = self.tokenizer(part, return_attention_mask=False, **options)["input_ids"]
                self._encoded |= {text: np.array(ids, dtype=np.int32) for text, ids in zip(part, encoded, strict=True)}

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval stores with the results."""
        return {
            "model_num_parameters": sum(p.numel() for p in self.model.parameters()),
            "model_dtype": str(self.model.dtype),
            "batch_tokens": self.batch_tokens,
            "multilora_version": multilora.__version__,
        }

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of complete texts, in windows of `max_length` that predict each token once."""
        pieces: list[tuple[list[int], list[int]]] = []
        counts = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            before = len(pieces)
            pieces += map(make_disjoint_window, windows)
            counts.append(len(pieces) - before)
        scored = iter(self._score(pieces, disable_tqdm))
        totals = []
        for request, count in zip(requests, counts, strict=True):
            totals.append(sum(next(scored).total for _ in range(count)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
        scored = self._score([(context, continuation) for _, context, continuation in requests], disable_tqdm)
        answers = [(score.total, score.greedy) for score in scored]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]], quiet: bool) -> list[Scored]:
        requests = [self._fitted(context, continuation) for context, continuation in pairs]
        shortened = sum(len(r.context) < len(context) for r, (context, _) in zip(requests, pairs, strict=True))
        if shortened:
            logger.warning("%s of %s contexts cut to max_length %s", shortened, len(pairs), self.max_length)
        if not requests or quiet:
            return score_requests(self.model, requests, batch_tokens=self.batch_tokens)
        with progress("lm-eval log-likelihoods", len(requests)) as advance:
            return score_requests(self.model, requests, batch_tokens=self.batch_tokens, advance=advance)

    def _fitted(self, context: list[int], continuation: list[int]) -> Request:
        """The request whose tokens, without the last, fit into `max_length`; cut at the start of the context."""
        if not continuation:
            end = self.tokenizer.decode(context[-20:])
            raise InputError(
                f"lm-eval: a continuation has no token of its own after {end!r}; give the task's choices some text"
            )
        if len(continuation) > self.max_length:
            raise InputError(
                f"lm-eval: a continuation has {len(continuation):,} tokens, expected at most max_length, "
                f"{self.max_length:,}; raise max_length if the model allows it, or leave the task out"
            )
        return Request(context[-(self.max_length + 1 - len(continuation)) :], continuation)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return generated texts, each cut before the first of its stop strings."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(index)
        texts = [""] * len(requests)
        for indices in groups.values():
            options = self._generation_options(requests[indices[0]].args[1])
            room = self.max_length - options["max_new_tokens"]
            if room < 1:
                raise InputError(
                    f"lm-eval: max_gen_toks is {options['max_new_tokens']:,}, which leaves no room for a prompt in "
                    f"max_length, {self.max_length:,}; pass a smaller one with gen_kwargs (max_gen_toks=...)"
                )
            prompts = [
                self.tok_encode(requests[index].args[0], left_truncate_len=room) or [self.prefix_token_id]
                for index in indices
            ]
            generations = self._generate(prompts, options, disable_tqdm)
            for index, generation in zip(indices, generations, strict=True):
                texts[index] = generation.text
                self.cache_hook.add_partial("generate_until", requests[index].args, generation.text)
        return texts

    def _generate(self, prompts: list[list[int]], options: dict[str, Any], quiet: bool) -> list[Any]:
        options = {**options, "batch_tokens": self.batch_tokens}
        if quiet:
            return generate(self.model, self.tokenizer, prompts, **options, advance=_ignore)
        with progress("lm-eval generations", len(prompts)) as advance:
            return generate(self.model, self.tokenizer, prompts, **options, advance=advance)

    def _generation_options(self, gen_kwargs: dict[str, Any]) -> dict[str, Any]:
        """The options of `generate` for a task's generation_kwargs, by lm-eval's rules for them.

        Raises:
            InputError: an option that the engine does not have.
        """
        options: dict[str, Any] = dict(normalize_gen_kwargs(gen_kwargs, self.max_gen_toks))
        unsupported = [
            f"{name}={value!r}"
            for name, value in options.items()
            if name not in _USED and (name not in _NEUTRAL or value != _NEUTRAL[name])
        ]
        if unsupported:
            raise InputError(
                f"lm-eval: the task's generation_kwargs have {', '.join(unsupported)}, expected only "
                f"{', '.join(_USED)}; override them with gen_kwargs, or use lm-eval's model `hf`"
            )
        defaults = self.model.generation_config
        ends = defaults.eos_token_id
        samples = bool(options["do_sample"])

        def sampled(name: str, neutral: float) -> Any:
            """The task's value, else that of the model's generation config."""
            return options.get(name, getattr(defaults, name, None) or neutral) if samples else neutral

        return {
            "stop_ids": {*(ends if isinstance(ends, list) else [ends]), self.eot_token_id} - {None},
            "stop_strings": options["until"],
            "max_new_tokens": options["max_gen_toks"],
            "temperature": float(options.get("temperature", defaults.temperature or 1.0)) if samples else 0.0,
            "top_p": float(sampled("top_p", 1.0)),
            "top_k": int(sampled("top_k", 0)),
            "seed": torch.initial_seed(),  # lm-eval sets torch's
        }


def _arguments(arguments: dict[str, Any], add_bos_token: bool | None) -> ModelArguments:
    known = set(ModelArguments.__dataclass_fields__)
    unknown = [f"{name!r}{nearest(name, known)}" for name in arguments if name not in known]
    if unknown:
        raise InputError(f"model_args: unknown {', '.join(unknown)}; expected {', '.join(sorted(known))}, ...")
    return ModelArguments(**arguments, add_bos_token=add_bos_token)


def _ignore(*_: Any, **__: Any) -> None:
    """An `advance` that shows nothing."""
