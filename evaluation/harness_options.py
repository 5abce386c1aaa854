"""The options of the harness's model `llada`: its arguments (`--model_args`), and what a task asks for beside them."""

import dataclasses
import difflib
import os
from collections.abc import Iterable
from typing import Any

from modeling_llada.generation_config_llada import ALIASES as GENERATION_ALIASES
from modeling_llada.generation_config_llada import DEFAULTS

from .likelihood import LikelihoodOptions

SCORINGS = ("likelihood", "confidence_order")
# Other spellings of an argument.
ALIASES = {"mc_num": "num_samples", **GENERATION_ALIASES}
# Options of generation that say nothing about a text that is scored, or that many prompts at once cannot have.
_NOT_TAKEN = ("max_length", "return_dict_in_generate", "output_history", "freeze_prompt")
GENERATION_OPTIONS = tuple(name for name in DEFAULTS if name not in _NOT_TAKEN)
_LIKELIHOOD = [field.name for field in dataclasses.fields(LikelihoodOptions)]
# How tasks and other back ends spell the length of an answer; the first that is given counts.
LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# Options that only together say how tokens are drawn.
_SAMPLING = ("do_sample", "temperature", "top_p", "top_k")


@dataclasses.dataclass(frozen=True)
class HarnessOptions:
    """What the arguments say; every default of the model `llada` is here, in `LikelihoodOptions` or in the checkpoint.

    Attributes:
        pretrained: folder, Hub id or a model. None is the bundled model.
        tokenizer: the tokenizer of a `pretrained` that is a model.
        revision: branch, tag or commit on the Hub.
        dtype: auto (the checkpoint's), float32, bfloat16 or float16.
        device: a torch device; None is the best one. Each of several processes takes its own GPU, unless this is the
            CPU. A GPU that is not there is the CPU, with a warning: the harness's command names one by default. A model
            given as an object stays where it is.
        batch_size: prompts that each process answers at once, at least 1. Likelihoods go by `max_batch_tokens`.
        max_length: longest context and answer in tokens, at least 2. None is the model's `max_sequence_length`.
        scoring: what `loglikelihood` returns: `likelihood`, or `confidence_order` (see `score_in_confidence_order`),
            which is not a likelihood.
        greedy_check: whether `loglikelihood` also finds out if greedy decoding gives the continuation, in a pass per
            token. None does so where a question has only this one request: tasks such as LAMBADA need it, multiple
            choice does not. What is not checked reads False.
        result_cache: a folder; see `ResultCache`.
        likelihood: options of the likelihood. `num_samples` is also spelt `mc_num`.
        generation: options of generation that were named; they come before a task's own.
    """

    pretrained: Any = None
    tokenizer: Any = None
    revision: str = "main"
    dtype: str = "auto"
    device: str | None = None
    batch_size: int = 8
    max_length: int | None = None
    scoring: str = SCORINGS[0]
    greedy_check: bool | None = None
    result_cache: str | None = None
    likelihood: LikelihoodOptions = dataclasses.field(default_factory=LikelihoodOptions)
    generation: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ValueError(f"`batch_size` must be a whole number of at least 1, got {self.batch_size!r}.")
        if self.scoring not in SCORINGS:
            raise ValueError(f"`scoring` must be one of {', '.join(SCORINGS)}, got {self.scoring!r}.")
        if self.greedy_check not in (None, True, False):
            raise ValueError(f"`greedy_check` must be None, True or False, got {self.greedy_check!r}.")
        is_model = self.pretrained is not None and not isinstance(self.pretrained, (str, os.PathLike))
        if is_model != (self.tokenizer is not None):
            raise ValueError("`tokenizer` must be given with a `pretrained` that is a model, and only with that.")

    @property
    def seed(self) -> int:
        """Of everything that is drawn."""
        return self.likelihood.seed

    def longest_text(self, max_sequence_length: int) -> int:
        """Return `max_length`, or the model's.

        Raises:
            ValueError: if the model does not take as much.
        """
        if self.max_length is None:
            return max_sequence_length
        if not 2 <= self.max_length <= max_sequence_length:
            raise ValueError(
                f"`max_length` must lie in 2..{max_sequence_length}, what the model takes, got {self.max_length}."
            )
        return self.max_length


_OWN = [field.name for field in dataclasses.fields(HarnessOptions) if field.name not in ("likelihood", "generation")]


def read_arguments(arguments: dict[str, Any]) -> HarnessOptions:
    """Sort arguments by the part that reads them; `cfg_scale` is read by likelihood and generation.

    Args:
        arguments: fields of `HarnessOptions` but for its last two, of `LikelihoodOptions`, and options of
            `LLaDAGenerationConfig`.

    Raises:
        ValueError: for an unknown name, with the nearest known one; two spellings of one; a value outside its range.
            What generation makes of its options shows when the model is there.
    """
    values: dict[str, Any] = {}
    known = (*_OWN, *_LIKELIHOOD, *GENERATION_OPTIONS)
    for spelling, value in arguments.items():
        name = ALIASES.get(spelling, spelling)
        if name not in known:
            raise ValueError(_describe_unknown(spelling, [*dict.fromkeys(known), *ALIASES]))
        if name in values:
            raise ValueError(f"`{name}` was given in two spellings, one of them `{spelling}`; pass one of them.")
        # The harness's command passes its --batch_size as text.
        is_number = name == "batch_size" and isinstance(value, str) and value.isdigit()
        values[name] = int(value) if is_number else value
    own, likelihood, generation = (
        {name: value for name, value in values.items() if name in names}
        for names in (_OWN, _LIKELIHOOD, GENERATION_OPTIONS)
    )
    return HarnessOptions(**own, likelihood=LikelihoodOptions(**likelihood), generation=generation)


def read_task_options(
    generation_kwargs: dict[str, Any], named: Iterable[str]
) -> tuple[list[str], dict[str, Any], list[str]]:
    """Translate a task's `generation_kwargs`.

    Args:
        generation_kwargs: as the task spells them.
        named: options that the model's arguments name. They come before the task's; any of `do_sample`,
            `temperature`, `top_p` and `top_k` comes before all four.

    Returns:
        The strings that end an answer; options of `LLaDAGenerationConfig`; and the names that are not used, because
        the model's arguments come before them or because they mean nothing to masked diffusion.

    Raises:
        ValueError: for an `until` that is not text.
    """
    left = {name: value for name, value in generation_kwargs.items() if value is not None}
    until = left.pop("until", [])
    until = [until] if isinstance(until, str) else list(until)
    if not all(isinstance(text, str) for text in until):
        raise ValueError(f"`until` must be text or a list of texts, got {until!r}.")
    named = set(named)
    closed = named | set(_SAMPLING if named & set(_SAMPLING) else ())
    lengths = [name for name in LENGTH_NAMES if name in left]
    options: dict[str, Any] = {}
    unused = lengths[1:]
    for name in [name for name in left if name not in unused]:
        target = "max_new_tokens" if name in lengths else GENERATION_ALIASES.get(name, name)
        if target in closed or target in options or target not in GENERATION_OPTIONS:
            unused.append(name)
        else:
            options[target] = left[name]
    if options.get("do_sample"):
        options.setdefault("temperature", 1.0)  # what transformers takes
    return until, options, sorted(unused)


def _describe_unknown(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean `{nearest[0]}`?" if nearest else f"known ones: {', '.join(known)}."
    return f"Unknown argument `{name}` of the model `llada`; {hint}"
