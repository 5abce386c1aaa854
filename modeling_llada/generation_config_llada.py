"""The options of generation: names, defaults, checks and their file, `generation_config.json`."""

import difflib
from typing import Any, Optional

from transformers import GenerationConfig
from transformers.utils import logging

from .cache_llada import CACHES
from .unmasking_llada import COMMIT_RULES, REMASKING, CommitRule

logger = logging.get_logger(__name__)

# Every option and its default; LLaDAGenerationConfig's docstring explains them in the same order.
DEFAULTS: dict[str, Any] = {
    "max_new_tokens": 128,
    "max_length": None,
    "steps": None,
    "block_length": 32,
    "temperature": 0.0,
    "top_p": None,
    "top_k": None,
    "do_sample": None,
    "remasking": "low_confidence",
    "threshold": None,
    "factor": None,
    "frechet": None,
    "entropy_bound": None,
    "remask_rate": 0.0,
    "cfg_scale": 0.0,
    "compile": False,
    "pack_weights": None,
    "cache": "none",
    "refresh_interval": None,
    "freeze_prompt": False,
    "suffix_window": None,
    "stop_at_eos": True,
    "logits_eos_inf": False,
    "confidence_eos_eot_inf": False,
    "return_dict_in_generate": False,
    "output_history": False,
    "eos_token_id": None,
    "eot_token_id": None,
    "mask_token_id": None,
    "pad_token_id": None,
    "bos_token_id": None,
}
# Other spellings of an option.
ALIASES = {"gen_length": "max_new_tokens"}
# What transformers writes into the file beside the options.
METADATA = ("transformers_version", "_from_model_config", "_commit_hash")
# Autoregressive fields that say nothing here even where they are set.
WITHOUT_MEANING = ("use_cache",)


class LLaDAGenerationConfig(GenerationConfig):
    """Options of `LLaDAModelLM.generate` and `infill`, saved in `generation_config.json`.

    Args:
        max_new_tokens: length of the answer's canvas in tokens, at least 1; also spelt `gen_length`. None: the canvas
            grows block by block until every row has ended or `max_length` is reached. Each block then sees no masks
            after it, as with `suffix_window=0`; a longer canvas gives other texts.
        max_length: longest prompt and answer with `max_new_tokens=None`; None is the model's `max_sequence_length`.
        steps: denoising steps in all, shared over the blocks, larger shares first; at least the number of blocks.
            None is one token per step, or as many as a parallel rule needs. With a parallel rule, every pass commits
            at least the schedule's share, so that `steps` bounds the passes.
        block_length: tokens per block; blocks are finished from left to right. `max_new_tokens` is pure diffusion.
            The last block may be shorter.
        temperature: 0 takes the most probable token; above 0, tokens are drawn from softmax(logits / temperature).
        top_p: draw from the smallest set of tokens whose probabilities sum to it, in (0, 1].
        top_k: draw from the k most probable tokens, at least 1.
        do_sample: False is greedy whatever the temperature; True needs a temperature above 0. None follows the
            temperature.
        remasking: confidence by which tokens are committed: `low_confidence` (probability), `margin`, `entropy`
            or `random`.
        threshold: commit every token of at least this confidence, in (0, 1] (e.g. 0.9), and at least one per pass.
        factor: commit the largest n with (n + 1) (1 - c_n) < factor, above 0 (e.g. 1.0); c_n is the n-th confidence.
        frechet: commit the largest n with c_1 + … + c_n - (n - 1) - (1 - c_n) > frechet, in [0, 1) (e.g. 0.25).
        entropy_bound: commit the largest n whose entropies sum, without the largest, to at most this many nats, at
            least 0 (e.g. 0.1). At most one of these four rules.
        remask_rate: self-correction: after every step but a block's last, this share of the tokens committed in the
            block before is masked again, the least confident ones first; in [0, 1). With it, `steps=None` is one step
            per token. Not exact with caches, which still hold the keys of the old tokens' neighbours.
        cfg_scale: w of unsupervised guidance, logits = u + (1 + w) (c - u) with u from the prompt masked out;
            0 is off. Doubles the work.
        compile: run the model through `torch.compile`; it scores whole blocks then, so that shapes do not change
            from step to step. The first call takes minutes at most, for each new shape.
        pack_weights: on a CPU, reorder the weights once per call for faster kernels; the copy takes as much memory as
            the linear layers. None does so for models of up to 2 GiB, True for any, or raises where it cannot be done.
        cache: `none` recomputes everything (exact); `prefix` keeps the keys and values of what precedes the block for
            the block's passes, `dual` those of everything outside it. Both are approximations.
        refresh_interval: with a cache, recompute everything at every n-th pass of a block, not only its first; 1 is
            exact.
        freeze_prompt: with a cache, compute the prompt's keys and values once per call instead of once per block.
        suffix_window: look at no more than this many masked columns after the block, at least 0. None looks at all.
        stop_at_eos: end a row once an end-of-text token is committed and nothing before it is masked.
        logits_eos_inf: never propose an end-of-text token.
        confidence_eos_eot_inf: commit end-of-text and end-of-turn tokens last.
        return_dict_in_generate: return a `LLaDAGenerationOutput` instead of ids.
        output_history: with `return_dict_in_generate`, also return the canvas before the first and after every step.
        eos_token_id: end-of-text id, or a list of ids any of which ends a row.
        eot_token_id: end-of-turn id (LLaDA: 126348).
        mask_token_id: mask id.
        pad_token_id: id that fills a row after its end.
        bos_token_id: kept from the file; generation does not add it.

    Ids that are None come from the model's config.

    Raises:
        ValueError: for an unknown option (the nearest known one is named), a value outside its range, and options
            that contradict each other.

    Source: LLaDA (arXiv:2502.09992), section 2.4 and App. B.4; Eq. 16 for guidance.
    """

    def __init__(self, **kwargs: Any):
        metadata = {name: kwargs.pop(name) for name in METADATA if name in kwargs}
        options = {**DEFAULTS, **known_options(kwargs)}
        if options["temperature"] is None:
            # An empty temperature is the default, see `to_diff_dict`.
            options["temperature"] = DEFAULTS["temperature"]
        for name, value in options.items():
            setattr(self, name, value)
        # The base class writes its own fields; it takes those that both have, and validates at its end.
        super().__init__(**options, **metadata)

    def validate(self, **kwargs: Any) -> None:
        """Check every option on its own and against the others; the arguments of the base class do not apply."""
        _check("block_length", self.block_length, lambda v: _is_int(v) and v >= 1, "a whole number of at least 1")
        for name in ("max_new_tokens", "max_length", "steps", "top_k", "refresh_interval"):
            _check(name, getattr(self, name), lambda v: v is None or (_is_int(v) and v >= 1), "None or at least 1")
        for name in ("temperature", "cfg_scale"):
            _check(name, getattr(self, name), lambda v: _is_number(v) and v >= 0, "a number of at least 0")
        _check("top_p", self.top_p, lambda v: v is None or (_is_number(v) and 0 < v <= 1), "None or in (0, 1]")
        for name in ("do_sample", "pack_weights"):
            _check(name, getattr(self, name), lambda v: v in (None, True, False), "None, True or False")
        _check("remasking", self.remasking, lambda v: v in REMASKING, f"one of {', '.join(REMASKING)}")
        for name, value in DEFAULTS.items():
            if isinstance(value, bool):
                _check(name, getattr(self, name), lambda v: isinstance(v, bool), "True or False")
        _check("threshold", self.threshold, lambda v: v is None or (_is_number(v) and 0 < v <= 1), "None or in (0, 1]")
        _check("factor", self.factor, lambda v: v is None or (_is_number(v) and v > 0), "None or above 0")
        _check("frechet", self.frechet, lambda v: v is None or (_is_number(v) and 0 <= v < 1), "None or in [0, 1)")
        for name in ("entropy_bound", "suffix_window"):
            _check(name, getattr(self, name), lambda v: v is None or (_is_number(v) and v >= 0), "None or at least 0")
        _check("remask_rate", self.remask_rate, lambda v: _is_number(v) and 0 <= v < 1, "in [0, 1)")
        _check("cache", self.cache, lambda v: v in CACHES, f"one of {', '.join(CACHES)}")
        self._check_contradictions()

    def _check_contradictions(self) -> None:
        if self.do_sample and self.temperature == 0:
            raise ValueError("`do_sample=True` needs `temperature` above 0, got 0; pass e.g. temperature=0.7.")
        if self.output_history and not self.return_dict_in_generate:
            raise ValueError("`output_history=True` needs `return_dict_in_generate=True`; pass both.")
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
                f"`{name}` has no meaning with `max_new_tokens=None`, which grows the canvas block by block; leave it "
                "out, or pass `max_new_tokens`."
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
        return _as_tuple(self.eos_token_id)

    @property
    def packs_weights(self) -> Optional[bool]:
        """Whether to pack the weights; None where it pays. A compiled model brings its own kernels."""
        return False if self.compile else self.pack_weights

    @property
    def longest_block(self) -> int:
        """Columns of the answer's longest block."""
        return min(self.block_length, self.max_new_tokens or self.block_length)

    @property
    def visible_suffix(self) -> Optional[int]:
        """Masked columns that a block sees after it; None is all of them."""
        return 0 if self.max_new_tokens is None else self.suffix_window

    @property
    def commit_rule(self) -> CommitRule:
        """The parallel rule, or the plain schedule."""
        for name, rule in COMMIT_RULES.items():
            if getattr(self, name) is not None:
                return rule(getattr(self, name))
        return CommitRule()

    def updated(self, **options: Any) -> "LLaDAGenerationConfig":
        """A checked copy with some options replaced.

        Raises:
            ValueError: as the class.
        """
        current = {name: getattr(self, name) for name in DEFAULTS}
        return LLaDAGenerationConfig(**{**current, **known_options(options)})

    def completed(self, model_config: Any) -> "LLaDAGenerationConfig":
        """A copy in which ids that nobody gave are the model's.

        Raises:
            ValueError: for an id that an option needs and that the model's config does not give either.
        """
        names = ("mask_token_id", "eos_token_id", "pad_token_id", "eot_token_id")
        unset = [name for name in names if getattr(self, name) is None]
        config = self.updated(**{name: getattr(model_config, name, None) for name in unset})
        needs = {
            "mask_token_id": "generation",
            "eos_token_id": "stop_at_eos" if self.stop_at_eos else "logits_eos_inf" if self.logits_eos_inf else None,
            "pad_token_id": "stop_at_eos" if self.stop_at_eos else None,
        }
        if self.confidence_eos_eot_inf:
            needs["eos_token_id"] = needs["eot_token_id"] = "confidence_eos_eot_inf"
        for name, reason in needs.items():
            if reason is not None and getattr(config, name) is None:
                raise ValueError(
                    f"`{name}` is needed for `{reason}`, but neither the call, nor the generation config, nor the "
                    f"model's config gives it; pass `{name}`."
                )
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
        is_ours = all(hasattr(config, name) for name in DEFAULTS)
        values = config.to_dict() if is_ours else config.to_diff_dict()
        options = {name: values[name] for name in DEFAULTS if values.get(name) is not None}
        if is_ours and values["max_new_tokens"] is None:
            options["max_new_tokens"] = None
        ignored = set(config.to_diff_dict()).difference(DEFAULTS, METADATA, WITHOUT_MEANING)
        if ignored and not is_ours:
            logger.warning_once(
                f"These options of the generation config have no meaning for masked diffusion and are not used: "
                f"{', '.join(sorted(ignored))}."
            )
        return cls(**options)


def known_options(options: dict[str, Any]) -> dict[str, Any]:
    """Resolve other spellings and refuse names that are no options.

    Raises:
        ValueError: for an unknown name, with the nearest known one; for two spellings of one option.
    """
    resolved: dict[str, Any] = {}
    for name, value in options.items():
        target = ALIASES.get(name, name)
        if target not in DEFAULTS:
            nearest = difflib.get_close_matches(name, [*DEFAULTS, *ALIASES], n=1, cutoff=0.5)
            hint = f"did you mean `{nearest[0]}`?" if nearest else f"known options: {', '.join(DEFAULTS)}."
            raise ValueError(f"`{name}` is no option of LLaDA's generation; {hint}")
        if target in resolved:
            raise ValueError(f"`{name}` and `{target}` are the same option; pass one of them.")
        resolved[target] = value
    return resolved


def _check(name: str, value: Any, is_valid: Any, rule: str) -> None:
    if not is_valid(value):
        raise ValueError(f"`{name}` must be {rule}, got {value!r}.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _as_tuple(ids: Optional[Any]) -> tuple[int, ...]:
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, (list, tuple)) else (int(ids),)
