"""The options of generation: one table of names, defaults, rules and meanings, and their file."""

import copy
import difflib
import math
import os
from collections.abc import Callable
from typing import Any

from transformers import CompileConfig, GenerationConfig
from transformers.utils import logging

from .configuration_llada import read_json_object, read_weight_index
from .unmasking_llada import COMMIT_RULES, CommitRule

logger = logging.get_logger(__name__)

# Option -> default, kind, rule, meaning. The kind is int, float, bool, str, texts, id, or one of `LISTS`. The rule is a
# key of `BOUNDS`, behind "None or" where None is allowed too, or the values to choose from, or the rule of `LISTS`;
# bools and ids need none. Defaults, checks and the class's docstring are made from this table, and so are the table in
# the documentation and the flags of the command line, whose help is the meaning's first sentence. They read it as text,
# so it holds nothing but literals.
# fmt: off
OPTIONS: dict[str, tuple[Any, str, Any, str]] = {
    "max_new_tokens": (128, "int", "None or at least 1",
        "length of the answer's canvas in tokens; also spelt `gen_length`. `None`: the canvas grows block by block "
        "until every row has ended or `max_length` is reached; a block then sees no masks after it, as with "
        "`suffix_window=0`, so the text differs from that of a longer canvas"),
    "max_length": (None, "int", "None or at least 1",
        "let the answer grow block by block up to this length of prompt and answer. Takes the place of "
        "`max_new_tokens`, which is then `None`; `None` is the model's `max_sequence_length`"),
    "min_new_tokens": (None, "int", "None or at least 0",
        "propose no end-of-text token among this many first tokens of the answer"),
    "max_time": (None, "float", "None or at least 0",
        "begin no pass after this many seconds. Each row then ends before its first mask"),
    "stop_strings": (None, "texts", "None, a text or a list of texts",
        "end a row at the first of these texts. It is cut after the token that completes one; finished blocks are "
        "looked through. Needs the argument `tokenizer`"),
    "num_return_sequences": (None, "int", "None or at least 1",
        "answers per prompt, next to each other in the batch. More than one needs draws: `temperature` above 0 or "
        "`remasking=\"random\"`"),
    "steps": (None, "int", "None or at least 1",
        "denoising steps in all, shared over the blocks, larger shares first; at least the number of blocks. `None` is "
        "one token per step, or as many steps as a parallel rule needs. With a parallel rule, every pass commits at "
        "least the schedule's share, so that `steps` bounds the passes"),
    "block_length": (32, "int", "at least 1",
        "tokens per block; blocks are finished from left to right. The last one may be shorter; one block as long as "
        "`max_new_tokens` is pure diffusion"),
    "temperature": (0.0, "float", "0, or from 1e-6 to 1e6",
        "0 takes the most probable token; above 0, tokens are drawn from softmax(logits / temperature)"),
    "top_p": (None, "float", "None or in (0, 1]",
        "draw from the smallest set of tokens whose probabilities sum to it, in (0, 1]"),
    "top_k": (None, "int", "None or at least 1", "draw from the k most probable tokens"),
    "min_p": (None, "float", "None or in [0, 1]",
        "draw from the tokens whose probability is at least this share of the highest one"),
    "typical_p": (None, "float", "None or in (0, 1]",
        "draw from the tokens that are about as surprising as the prediction's entropy, up to this sum of "
        "probabilities"),
    "epsilon_cutoff": (None, "float", "None or in [0, 1)", "draw from the tokens of at least this probability"),
    "eta_cutoff": (None, "float", "None or in [0, 1)",
        "draw from the tokens of at least this probability, or less where the prediction's entropy is high"),
    "do_sample": (None, "bool", "None, True or False",
        "`False` is greedy at any temperature; `True` without a temperature draws at temperature 1; `None` follows the "
        "temperature"),
    "remasking": ("low_confidence", "str", ("low_confidence", "margin", "entropy", "random"),
        "confidence by which tokens are committed: `low_confidence` (probability), `margin` (best minus second best), "
        "`entropy` (1 − entropy over its maximum) or `random`"),
    "threshold": (None, "float", "None or in (0, 1]",
        "parallel rule: commit every token of at least this confidence, in (0, 1], such as 0.9, and at "
        "least one per pass. At most one of the four parallel rules may be set"),
    "factor": (None, "float", "None or above 0",
        "parallel rule: commit the largest n with (n + 1)(1 − c_n) < factor, such as 1.0; c_n is the n-th "
        "highest confidence"),
    "frechet": (None, "float", "None or in [0, 1)",
        "parallel rule: commit the largest n with c_1 + … + c_n − (n − 1) − (1 − c_n) > frechet, in [0, 1), "
        "such as 0.25"),
    "entropy_bound": (None, "float", "None or at least 0",
        "parallel rule: commit the largest n whose entropies sum, without the largest, to at most this many nats, "
        "such as 0.1"),
    "fallback": ("confident", "str", ("confident", "leftmost"),
        "what a pass commits where the parallel rule allows fewer tokens than it must commit: `confident` takes the "
        "most confident ones, `leftmost` the first masked ones of the block. Without a parallel rule, `leftmost` "
        "decodes from left to right"),
    "remask_rate": (0.0, "float", "in [0, 1)",
        "self-correction: after every step of a block but its last, this share of the block's earlier committed tokens "
        "is masked again, the least confident first. In [0, 1). With it, `steps=None` is one step per token. Not exact "
        "with caches, which still hold the keys of the old tokens' neighbours"),
    "repetition_penalty": (None, "float", "None or above 0",
        "divide the positive logits, and multiply the negative ones, of tokens that stand on the canvas, prompt "
        "included. Above 1 repeats less"),
    "presence_penalty": (0.0, "float", "from -2 to 2",
        "take this from the logits of tokens that stand in the answer. Above 0 repeats less"),
    "frequency_penalty": (0.0, "float", "from -2 to 2",
        "take this from the logits of tokens for every time that they stand in the answer. Above 0 repeats less"),
    "no_repeat_ngram_size": (None, "int", "None or at least 0",
        "propose no token that would complete this many tokens in a row that stand further left already. Only where "
        "the tokens just before it are known; tokens of one pass do not see each other"),
    "bad_words_ids": (None, "words", "None or lists of token ids",
        "words that must not appear, a list of token ids each. A word of several tokens is avoided where its other "
        "tokens are known; tokens of one pass do not see each other"),
    "sequence_bias": (None, "biases", "None or pairs of token ids and a number",
        "`[[ids, bias], ...]` adds a bias to the logit of a token that completes the ids. As `bad_words_ids` where the "
        "ids are several"),
    "suppress_tokens": (None, "tokens", "None or a list of token ids", "tokens that are never proposed"),
    "begin_suppress_tokens": (None, "tokens", "None or a list of token ids",
        "tokens that are never proposed as the answer's first one"),
    "cfg_scale": (0.0, "float", "a finite number of at least 0",
        "strength w of unsupervised guidance: logits = u + (1 + w)(c − u), u from the prompt masked out; 0 is off. "
        "Doubles the work"),
    "compile": (False, "bool", "True or False",
        "run the model through `torch.compile`; the first pass of each shape is slow. Whole blocks are scored, rows "
        "are filled up to a power of two and columns to a block or a multiple of 64, so that few shapes occur"),
    "compile_config": (None, "compile", "None or a `CompileConfig`",
        "with `compile=True`, the arguments of `torch.compile`, as a `CompileConfig` of transformers; `None` takes "
        "torch's defaults. Not saved"),
    "pack_weights": (None, "bool", "None, True or False",
        "on a CPU, reorder the weights once per call for faster kernels, at the price of a copy. `None` does "
        "so for models of up to 2 GiB, `True` for any, or raises where it cannot be done"),
    "cache": ("none", "str", ("none", "prefix", "dual"),
        "`none` computes everything in every pass (exact); `prefix` keeps keys and values of what precedes the block "
        "for the block's passes, `dual` of everything outside it; both are approximations"),
    "refresh_interval": (None, "int", "None or at least 1",
        "with a cache, recompute everything at every n-th pass of a block, not only its first; 1 is exact"),
    "freeze_prompt": (False, "bool", "True or False",
        "with a cache, compute the prompt's keys and values once per call, not once per block"),
    "suffix_window": (None, "int", "None or at least 0",
        "look at no more than this many masked columns after the block; `None` looks at all"),
    "speculate": (0, "int", "at least 0",
        "run the canvases of up to this many further steps as extra rows of a pass; a step whose canvas was foreseen "
        "takes no pass. The text is that of plain decoding; see decoding.md for when it pays"),
    "stop_at_eos": (True, "bool", "True or False",
        "end a row once an end-of-text token is committed and nothing before it is masked; the rest becomes padding"),
    "logits_eos_inf": (False, "bool", "True or False", "never propose an end-of-text token"),
    "confidence_eos_eot_inf": (False, "bool", "True or False", "commit end-of-text and end-of-turn tokens last"),
    "return_dict_in_generate": (False, "bool", "True or False", "return a `LLaDAGenerationOutput` instead of ids"),
    "output_history": (False, "bool", "True or False",
        "with `return_dict_in_generate`, keep the canvas before the first and after every step"),
    "eos_token_id": (None, "id", "", "end-of-text id, or a list of ids any of which ends a row"),
    "eot_token_id": (None, "id", "", "end-of-turn id; the official files do not name it (LLaDA: 126348)"),
    "mask_token_id": (None, "id", "", "mask id"),
    "pad_token_id": (None, "id", "", "id that fills a row after its end"),
    "bos_token_id": (None, "id", "", "kept from the file; generation does not add it"),
}
# fmt: on
BOUNDS: dict[str, Callable[[Any], bool]] = {
    "at least 1": lambda value: value >= 1,
    "at least 0": lambda value: value >= 0,
    "0, or from 1e-6 to 1e6": lambda value: value == 0 or 1e-6 <= value <= 1e6,
    "a finite number of at least 0": lambda value: 0 <= value < math.inf,
    "from -2 to 2": lambda value: -2 <= value <= 2,
    "above 0": lambda value: value > 0,
    "in (0, 1]": lambda value: 0 < value <= 1,
    "in [0, 1)": lambda value: 0 <= value < 1,
    "in [0, 1]": lambda value: 0 <= value <= 1,
}
# Kinds that are no single number, word or id -> whether a value, with tuples as lists, is one of them.
LISTS: dict[str, Callable[[Any], bool]] = {
    "texts": lambda value: _is_list_of(lambda text: isinstance(text, str) and text != "", value),
    "tokens": lambda value: _is_list_of(_is_id, value),
    "words": lambda value: _is_list_of(lambda word: _is_list_of(_is_id, word), value),
    "biases": lambda value: _is_list_of(_is_biased, value),
    "compile": lambda value: isinstance(value, CompileConfig),
}
# Options about the answer as a whole, which `infill` has not.
OF_ANSWERS = ("max_new_tokens", "gen_length", "max_length", "min_new_tokens", "max_time", "stop_strings", "stop_at_eos",
    "begin_suppress_tokens", "freeze_prompt", "suffix_window")  # fmt: skip
DEFAULTS: dict[str, Any] = {name: default for name, (default, *_) in OPTIONS.items()}
# Other spellings of an option.
ALIASES = {"gen_length": "max_new_tokens"}
# What transformers writes into the file beside the options.
METADATA = ("transformers_version", "_from_model_config", "_commit_hash")
# Autoregressive fields that say nothing here even where they are set.
WITHOUT_MEANING = ("use_cache",)
# Numbers that torch takes as sizes.
MAX_INT = 2**31 - 1
_PROCESSOR = "pass a `logits_processor`, which is called for every masked position"
# What callers of transformers pass and is not supported here, with the way out.
HINTS = {
    "inputs": "pass `input_ids`",
    "inputs_embeds": "pass `input_ids`; the canvas consists of ids",
    "token_type_ids": "leave it out; the model knows one kind of token",
    "position_ids": "pass `attention_mask`, from which positions are counted",
    "past_key_values": 'leave it out; the option `cache` ("prefix" or "dual") keeps keys and values within a call',
    "cache_implementation": 'use the option `cache` ("prefix" or "dual")',
    "custom_generate": "leave it out, or call your function with the model",
    "synced_gpus": "leave it out, and let all processes make equally many passes with `steps` and `stop_at_eos=False`",
    "num_beams": "leave it out; there are no beams to search",
    "guidance_scale": "use `cfg_scale` (0 is off; it is `guidance_scale` - 1)",
    "assistant_model": "leave it out; several tokens per pass come from `threshold` and its like",
    "negative_prompt_ids": "use `cfg_scale`, whose other prompt is masked out",
    "negative_prompt_attention_mask": "use `cfg_scale`, whose other prompt is masked out",
    "prefix_allowed_tokens_fn": _PROCESSOR,
    "use_model_defaults": "leave it out; the model's own options always hold where a call sets none",
    "min_length": "use `min_new_tokens`, which counts the answer alone",
    "exponential_decay_length_penalty": "use `max_new_tokens`; tokens are not committed from left to right",
    "forced_bos_token_id": "append the token to the prompt",
    "forced_eos_token_id": "leave it out; an answer ends by itself or at its length",
    "watermarking_config": _PROCESSOR,
    "remove_invalid_values": "leave it out; logits that are not finite raise",
    "renormalize_logits": "leave it out; confidences are probabilities already",
    "encoder_repetition_penalty": "use `repetition_penalty`; there is no encoder",
    "encoder_no_repeat_ngram_size": "use `no_repeat_ngram_size`; there is no encoder",
    "output_scores": "use `output_history` to see what was committed, or call the model",
    "output_logits": "use `output_history` to see what was committed, or call the model",
    "disable_compile": "leave it out; `compile=False` is the default",
    "top_h": _PROCESSOR,
}
# Values of theirs that change nothing, beside None and False.
NEUTRAL = {
    "num_beams": 1,
    "guidance_scale": 1.0,
    "min_length": 0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    # Options, for which transformers 4 fills these in.
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}


class LLaDAGenerationConfig(GenerationConfig):
    """Options of `LLaDAModelLM.generate` and `infill`, saved in `generation_config.json`.

    Args:
        {options}

    Ids that are None come from the model's config.

    Raises:
        ValueError: for an unknown option (the nearest known one is named), a value outside its range, and options
            that contradict each other.

    Source: LLaDA (arXiv:2502.09992), section 2.4 and App. B.4; Eq. 16 for guidance.
    """

    def __init__(self, **kwargs: Any):
        metadata = {name: kwargs.pop(name) for name in METADATA if name in kwargs}
        options = {**DEFAULTS, **known_options(kwargs)}
        if options["do_sample"] and kwargs.get("temperature") is None:
            options["temperature"] = 1.0
        for name, value in options.items():
            setattr(self, name, value)
        # The base class writes its own fields; it takes those that both have, and validates at its end.
        super().__init__(**options, **metadata)

    def validate(self, **kwargs: Any) -> None:
        """Check every option on its own and against the others; the arguments of the base class do not apply.

        Numbers of numpy and torch become Python's.
        """
        for name, (_, kind, rule, _) in OPTIONS.items():
            value = getattr(self, name)
            if hasattr(value, "tolist"):
                value = value.tolist()
                setattr(self, name, value)
            if value is None and (kind == "id" or rule[:4] == "None"):
                continue
            if kind == "id":
                ids = value if isinstance(value, (list, tuple)) and name == "eos_token_id" else [value]
                is_valid = len(ids) > 0 and all(type(token) is int for token in ids)
                rule = "None or a token id" + (", or a list of token ids" if name == "eos_token_id" else "")
            elif kind in LISTS:
                value = as_lists(value, kind)
                setattr(self, name, value)
                is_valid = LISTS[kind](value)
            elif kind in ("bool", "str"):
                is_valid = isinstance(value, bool) if kind == "bool" else value in rule
            else:
                is_number = isinstance(value, int if kind == "int" else (int, float)) and not isinstance(value, bool)
                is_valid = is_number and BOUNDS[rule.removeprefix("None or ")](value)
            if not is_valid:
                expected = rule if isinstance(rule, str) else f"one of {', '.join(rule)}"
                raise ValueError(f"`{name}` must be {expected}, got {value!r}.")
            if kind == "int" and value > MAX_INT:
                raise ValueError(f"`{name}` must be at most {MAX_INT}, got {value}.")
        self._check_contradictions()

    def _check_contradictions(self) -> None:
        if self.do_sample and self.temperature == 0:
            raise ValueError("`do_sample=True` needs `temperature` above 0, got 0; pass e.g. temperature=0.7.")
        if self.output_history and not self.return_dict_in_generate:
            raise ValueError("`output_history=True` needs `return_dict_in_generate=True`; pass both.")
        if (self.num_return_sequences or 1) > 1 and not self.samples and self.remasking != "random":
            raise ValueError(
                f"`num_return_sequences` must be 1 where nothing is drawn, since all answers would be equal, got "
                f"{self.num_return_sequences}; pass a `temperature` above 0."
            )
        if self.max_new_tokens is not None and (self.min_new_tokens or 0) > self.max_new_tokens:
            raise ValueError(
                f"`min_new_tokens` must be at most `max_new_tokens` ({self.max_new_tokens}), got {self.min_new_tokens}."
            )
        if self.compile_config is not None and not self.compile:
            raise ValueError("`compile_config` needs `compile=True`; pass both.")
        if self.compile and self.pack_weights:
            raise ValueError("`compile=True` and `pack_weights=True` exclude each other; pass one of them.")
        rules = [name for name in COMMIT_RULES if getattr(self, name) is not None]
        if len(rules) > 1:
            raise ValueError(f"`{rules[0]}` and `{rules[1]}` are two commit rules; pass one of them.")
        if self.cache == "none" and (self.refresh_interval is not None or self.freeze_prompt):
            name = "freeze_prompt" if self.freeze_prompt else "refresh_interval"
            raise ValueError(f'`{name}` needs a cache, got `cache="none"`; pass cache="prefix" or cache="dual".')
        if self.max_new_tokens is None and (self.steps is not None or self.suffix_window):
            name = "suffix_window" if self.steps is None else "steps"
            raise ValueError(
                f"`{name}` has no meaning with `max_new_tokens=None` or `max_length`, which grow the canvas block by "
                "block; leave it out, or pass `max_new_tokens`."
            )
        if self.max_new_tokens is not None and self.max_length is not None:
            raise ValueError(
                f"`max_length` ({self.max_length}) needs `max_new_tokens=None`, got {self.max_new_tokens}; pass one of "
                "them."
            )

    @property
    def samples(self) -> bool:
        """Whether candidates are drawn rather than the most probable taken."""
        return self.temperature > 0 and self.do_sample is not False

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The end-of-text ids as a tuple, empty if there is none."""
        ids = self.eos_token_id
        if ids is None:
            return ()
        return tuple(ids) if isinstance(ids, (list, tuple)) else (int(ids),)

    @property
    def commit_rule(self) -> CommitRule:
        """The parallel rule, or the plain schedule."""
        for name, rule in COMMIT_RULES.items():
            if getattr(self, name) is not None:
                return rule(getattr(self, name), self.fallback)
        return CommitRule(fallback=self.fallback)

    def updated(self, **options: Any) -> "LLaDAGenerationConfig":
        """A checked copy with some options replaced.

        Raises:
            ValueError: as the class.
        """
        updated = copy.copy(self)
        for name, value in known_options(options).items():
            setattr(updated, name, value)
        if options.get("do_sample") and options.get("temperature") is None and not updated.temperature:
            updated.temperature = 1.0
        updated._from_model_config = False
        updated.validate()
        return updated

    def completed(self, model_config: Any, **options: Any) -> "LLaDAGenerationConfig":
        """A checked copy with some options replaced, in which ids that are None are the model's.

        Args:
            model_config: gives the ids.
            options: replace this config's.

        Raises:
            ValueError: as the class, and for a required token id that is not set anywhere or not in the vocabulary.
        """
        config = self.updated(**options)
        warn_of_unused(config)
        for name in ("mask_token_id", "eos_token_id", "pad_token_id", "eot_token_id"):
            if getattr(config, name) is None:
                setattr(config, name, getattr(model_config, name, None))
        last = {"confidence_eos_eot_inf": config.confidence_eos_eot_inf}
        ends = {"stop_at_eos": config.stop_at_eos}
        never = {"logits_eos_inf": config.logits_eos_inf, "min_new_tokens": config.min_new_tokens}
        readers = {
            "mask_token_id": {"generation": True},
            "eos_token_id": {**last, **ends, **never},
            "pad_token_id": {**ends, "stop_strings": config.stop_strings, "max_time": config.max_time is not None},
            "eot_token_id": last,
        }
        for name, reasons in readers.items():
            reason = next((reason for reason, value in reasons.items() if value), None)
            if reason is None:
                continue
            value = getattr(config, name)
            if value is None:
                raise ValueError(
                    f"`{name}` is needed for `{reason}`, but neither the call, nor the generation config, nor the "
                    f"model's config sets it; pass `{name}`."
                )
            ids, size = value if isinstance(value, (list, tuple)) else [value], model_config.embedding_size
            if min(ids) < 0 or max(ids) >= size:
                raise ValueError(
                    f"`{name}` must lie in the vocabulary, 0..{size - 1}, got {value}; is it another model's?"
                )
        for name, (_, kind, *_) in OPTIONS.items():
            if kind in ("tokens", "words", "biases") and getattr(config, name):
                check_tokens(name, kind, getattr(config, name), model_config.embedding_size)
        return config

    def to_diff_dict(self) -> dict[str, Any]:
        """All options, so that a file shows what is in force under every version of transformers."""
        options = {name: getattr(self, name) for name in (*DEFAULTS, "transformers_version")}
        # transformers warns of a temperature without `do_sample`; left empty, it is our default, 0.
        return {**options, "temperature": self.temperature or None}

    @classmethod
    def from_model_config(cls, model_config: Any) -> "LLaDAGenerationConfig":
        """Defaults; ids stay None, which means the model config's."""
        return cls(_from_model_config=True)

    @classmethod
    def from_generation_config(cls, config: GenerationConfig) -> "LLaDAGenerationConfig":
        """Take over what a plain `GenerationConfig` sets, as transformers reads it from any folder.

        A file of ours holds every option. From another file come the values that differ from the base class's
        defaults: transformers 4 fills in temperature 1.0 and top_k 50 where the file says nothing.
        Autoregressive options without a meaning here are named in one warning.
        """
        if isinstance(config, cls):
            return config
        warn_of_unused(config)
        # By these, since files that were saved before an option came do not have it.
        is_ours = all(hasattr(config, name) for name in ("remasking", "suffix_window", "stop_at_eos"))
        values = config.to_dict() if is_ours else config.to_diff_dict()
        options = {name: values[name] for name in DEFAULTS if values.get(name) is not None}
        if is_ours and values.get("max_new_tokens") is None:
            options["max_new_tokens"] = None
        elif not is_ours and "max_new_tokens" in options:
            options.pop("max_length", None)  # as in transformers
        return cls(**options)


_MEANINGS = "\n        ".join(f"{name}: {meaning}." for name, (*_, meaning) in OPTIONS.items())
# Python leaves docstrings out under -OO.
LLaDAGenerationConfig.__doc__ = (LLaDAGenerationConfig.__doc__ or "").replace("{options}", _MEANINGS)


def known_options(options: dict[str, Any]) -> dict[str, Any]:
    """Resolve other spellings, drop what changes nothing, and refuse unknown names.

    Raises:
        ValueError: for an unknown name, with the nearest known one; for two spellings of one option.
    """
    resolved: dict[str, Any] = {}
    for name, value in options.items():
        target = ALIASES.get(name, name)
        is_neutral = name in NEUTRAL and value == NEUTRAL[name]
        if name in HINTS and (value is None or value is False or is_neutral):
            continue
        if target not in DEFAULTS and (name in HINTS or name in vars(GenerationConfig())):
            hint = HINTS.get(name, "leave it out")
            raise ValueError(f"`{name}` is not supported here; {hint}.")
        if target not in DEFAULTS:
            nearest = difflib.get_close_matches(name, [*DEFAULTS, *ALIASES], n=1, cutoff=0.5)
            hint = f"did you mean `{nearest[0]}`?" if nearest else f"known options: {', '.join(DEFAULTS)}."
            raise ValueError(f"Unknown generation option `{name}`; {hint}")
        if target in resolved:
            raise ValueError(f"`{name}` and `{target}` are the same option; pass one of them.")
        resolved[target] = DEFAULTS[target] if is_neutral else value
    if resolved.get("temperature", 0.0) is None:
        # An empty temperature is the default, see `to_diff_dict`.
        resolved["temperature"] = DEFAULTS["temperature"]
    # A length that is given alone replaces the other one.
    if resolved.get("max_length") is not None:
        resolved.setdefault("max_new_tokens", None)
    elif resolved.get("max_new_tokens") is not None:
        resolved["max_length"] = None
    return resolved


def as_lists(value: Any, kind: str) -> Any:
    """Bring a value of the kinds in `LISTS` into the form in which it is checked and saved."""
    if kind == "texts" and isinstance(value, str):
        return [value]
    if kind == "compile" and isinstance(value, dict):
        return CompileConfig(**value)
    if kind == "biases" and isinstance(value, dict):
        value = list(value.items())
    if kind != "compile" and isinstance(value, (list, tuple)):
        return [as_lists(item, "") for item in value]
    return value


def check_tokens(name: str, kind: str, value: list, vocab_size: int) -> None:
    """Refuse ids outside the vocabulary in an option that lists tokens, words or biases.

    Raises:
        ValueError: in this case.
    """
    words = [value] if kind == "tokens" else value if kind == "words" else [ids for ids, _ in value]
    ids = [token for word in words for token in word]
    if max(ids) >= vocab_size:
        raise ValueError(f"`{name}` must lie in the vocabulary, 0..{vocab_size - 1}, got {max(ids)}.")


def _is_list_of(is_item: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(is_item(item) for item in value)


def _is_id(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_biased(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2 or not _is_list_of(_is_id, value[0]):
        return False
    return type(value[1]) in (int, float) and not math.isnan(value[1]) and value[1] != math.inf


def warn_of_unused(config: GenerationConfig) -> None:
    """Name, in one warning, what is set on a generation config and is not an option here."""
    plain = GenerationConfig()
    known = (*DEFAULTS, *METADATA, *WITHOUT_MEANING)
    unused = [
        name
        for name, value in vars(config).items()
        if not (name in known or name[:1] == "_" or value is False)
        and value not in (getattr(plain, name, None), NEUTRAL.get(name))
    ]
    if unused:
        logger.warning_once(
            "These options of the generation config have no meaning for masked diffusion and are not used: "
            f"{', '.join(sorted(unused))}."
        )


def check_files(folder: Any) -> None:
    """Read the files beside the weights that transformers does not check.

    Args:
        folder: where they lie; those that are not there are not needed.

    Raises:
        ValueError: for a generation config or an index of weights that is damaged, naming it.
    """
    for name, read in READERS.items():
        if is_read(file := os.path.join(folder, name)):
            read(file)


def is_read(file: str) -> bool:
    """Whether a file beside the weights is there and counts: no index does where all weights lie in one file."""
    is_unused = file.endswith(".index.json") and os.path.isfile(file.removesuffix(".index.json"))
    return os.path.isfile(file) and not is_unused


def _read_generation_config(file: str) -> None:
    fields = read_json_object(file)
    try:
        try:
            LLaDAGenerationConfig.from_generation_config(GenerationConfig.from_dict(fields))
        except TypeError:  # transformers compares values without a look at their types; this names the option
            LLaDAGenerationConfig().updated(**{name: fields[name] for name in fields if name in DEFAULTS})
            raise
    except (ValueError, TypeError) as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"`{file}` sets what cannot be read ({reason}); correct the file, or delete it.") from None


# What reads the files beside the weights.
READERS = {
    "generation_config.json": _read_generation_config,
    "model.safetensors.index.json": read_weight_index,
    "pytorch_model.bin.index.json": read_weight_index,
}
