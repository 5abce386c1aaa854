"""LLaDA as a model of lm-evaluation-harness: `--model llada --model_args pretrained=…,mc_num=128,steps=256`.

The harness has no plug-ins. Importing `llada_evaluation` adds the model to its registry, so `llada evaluate` and
`python -m llada_evaluation …`, which takes the arguments of `lm_eval`, know it; a bare `lm_eval` does not.
"""

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from llada_core.digests import json_digest, model_digest
from llada_core.loading import Checkpoint, load_checkpoint
from llada_core.processes import Processes
from llada_core.tokenization import special_tokens
from modeling_llada import LLaDAGenerationConfig, generate_many
from modeling_llada.generation_config_llada import DEFAULTS

from .confidence_order import matches_greedy_decoding, score_in_confidence_order
from .harness_options import HarnessOptions, read_arguments, read_task_options
from .likelihood import estimate_log_likelihoods
from .result_cache import Job, ResultCache, run_jobs

logger = logging.getLogger(__name__)

# Pairs that are scored, and batches of prompts that are answered, between two writes to the result cache.
PAIRS_PER_GROUP = 64
BATCHES_PER_GROUP = 4

Ids = tuple[int, ...]
Pair = tuple[Ids, Ids]
Progress = Callable[[int], Any]
Score = Callable[..., list[Any]]


@dataclasses.dataclass
class Truncation:
    """Cuts what is too long from the left, and counts it.

    Attributes:
        num_requests: texts that were cut.
        num_tokens: tokens that they lost.
    """

    num_requests: int = 0
    num_tokens: int = 0

    def fit(self, ids: Sequence[int], room: int) -> Ids:
        """Return the last `room` ids at most."""
        num_lost = max(0, len(ids) - room)
        self.num_requests += num_lost > 0
        self.num_tokens += num_lost
        return tuple(ids[num_lost:])


class LLaDAHarnessModel(TemplateLM):
    """Answers the requests of lm-evaluation-harness.

    A result depends on the model, the arguments and the request; not on the order of the requests and, but for
    rounding, not on what is computed together. An evaluation gives the same results twice, and after an interruption.

    Args:
        pretrained: folder or Hub id, unset for the bundled model; or a model, with its `tokenizer`.
        arguments: fields of `HarnessOptions` and `LikelihoodOptions` and options of `LLaDAGenerationConfig`. Options of
            generation that are named here override a task's `generation_kwargs`; a warning names what is not used.

    Raises:
        ValueError: for arguments that are unknown, out of range or contradict each other, and a checkpoint that cannot
            be evaluated.
        OSError: for one that does not exist.

    Example:

    ```python
    >>> import llada_evaluation
    >>> from lm_eval.api.registry import get_model
    >>> get_model("llada")(mc_num=8, device="cpu").max_length
    512

    ```
    """

    def __init__(self, pretrained: Any = None, **arguments: Any):
        super().__init__()
        self.options: HarnessOptions = read_arguments({"pretrained": pretrained, **arguments})
        self.processes = Processes()
        self._rank, self._world_size = self.processes.rank, self.processes.num_processes
        self._own_device = self.processes.connect(choose_device(self.options.device))
        if self.options.tokenizer is not None:
            checkpoint = Checkpoint.of(pretrained, self.options.tokenizer)
        else:
            checkpoint = load_checkpoint(pretrained, self._own_device, self.options.dtype, self.options.revision)
        self.model, self.tokenizer = checkpoint.model, checkpoint.tokenizer
        self._device = self.model.device
        self._max_length = self.options.longest_text(self.model.config.max_sequence_length)
        self.generation_config = checkpoint.options.updated(**self.options.generation).completed(self.model.config)
        self.num_truncated: dict[str, int] = {}
        self._cache = ResultCache(self.options.result_cache, self._rank)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations of contexts.

        Context and continuation are encoded as one text, spaces at the context's end with the continuation; before an
        empty context stands the beginning-of-text token. A context that is too long loses its beginning, which is
        counted and reported.

        Returns:
            For each request, the score in nats and whether greedy decoding gives the continuation: see
            `HarnessOptions.greedy_check`.

        Raises:
            ValueError: for a continuation without tokens, or longer than the model.
        """
        lost, check = Truncation(), self.options.greedy_check
        pairs = {number: self._encode_request(request, lost) for number, request in _distinct(requests).items()}
        is_alone = stands_alone(requests)
        if check is False and any(is_alone):
            logger.warning("`greedy_check` is False: what a task reports about greedy continuations reads 0.")
        results = self._loglikelihood_tokens(
            [(request.args, *pairs[id(request)]) for request in requests],
            disable_tqdm,
            checks=is_alone if check is None else [check] * len(requests),
        )
        self._report("loglikelihood", lost)
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts, each cut into windows that score every token once; see `rolling_windows`.

        Returns:
            The sum over the windows of each text, nats; 0 for an empty text.

        Raises:
            ValueError: with `scoring=confidence_order`, which is no likelihood.
        """
        if self.options.scoring != "likelihood":
            raise ValueError(
                f"`loglikelihood_rolling` needs `scoring=likelihood`, got {self.options.scoring!r}: perplexities are "
                "those of a likelihood."
            )
        texts = [
            rolling_windows(self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length)
            for request in requests
        ]
        windows = [(("", ""), *window) for text in texts for window in text]
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        return [float(sum(next(scores)[0] for _ in text)) for text in texts]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], Any, Any]], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        """Score encoded pairs; `checks` tells of each whether it is compared with greedy decoding, default not."""
        pairs: list[Pair] = [(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        scores = self._score(pairs, disable_tqdm)
        checked = [pair for pair, is_checked in zip(pairs, options.get("checks", ())) if is_checked]
        matches = self._score_in_order("greedy_check", matches_greedy_decoding, checked, disable_tqdm)
        is_greedy = dict(zip(checked, matches))
        return [(score, is_greedy.get(pair, False)) for score, pair in zip(scores, pairs)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer prompts.

        Those with equal options are answered together, `batch_size` at a time. An answer ends before its first end of
        text, end of turn or string of `until`; strings are looked for when it is finished. Repeats of a request draw
        anew. A prompt that is too long loses its beginning, which is counted and reported.

        Raises:
            ValueError: for options that contradict each other, and a canvas that leaves no room for a prompt.
        """
        kinds: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            kinds.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        lost, repeats, answers = Truncation(), repeat_numbers(requests), dict[int, str]()
        for indexes in kinds.values():
            until, config = self._prepare_request(requests[indexes[0]].args[1])
            chosen = _distinct([requests[index] for index in indexes])
            prompts = {number: self._encode_prompt(request, config, lost) for number, request in chosen.items()}
            work = [(prompts[id(requests[index])], repeats[index]) for index in indexes]
            answers.update(zip(indexes, self._answer(work, config, until, disable_tqdm)))
        self._report("generate_until", lost)
        return [answers[index] for index in range(len(requests))]

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes into its results: the model and every setting, as JSON values."""
        elsewhere = ("pretrained", "tokenizer", "likelihood", "generation")
        settings = {name: value for name, value in vars(self.options).items() if name not in elsewhere}
        return {
            "model_name": self.model.name_or_path,
            "model_digest": model_digest(self.model, self.tokenizer),
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
            "model_revision": self.options.revision,
            "llada_version": version("llada-hf"),
            "llada_settings": {
                **settings,
                "max_length": self.max_length,
                "likelihood": dataclasses.asdict(self.options.likelihood),
                "generation": options_of(self.generation_config),
                "generation_named": sorted(self.options.generation),
            },
            "num_processes": self.world_size,
            "num_truncated": dict(self.num_truncated),
        }

    @property
    def eot_token_id(self) -> int:
        """End of text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty context: beginning of text."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Name under which the harness keeps prompts that went through the chat template."""
        return self.tokenizer.name_or_path.replace("/", "__")

    @property
    def max_length(self) -> int:
        """Longest context and continuation, in tokens."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """Length of an answer where neither arguments nor task give one."""
        return self.generation_config.max_new_tokens or self.max_length

    @property
    def batch_size(self) -> int:
        """Prompts answered at once."""
        return self.options.batch_size

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Encode a text; one that begins with the beginning-of-text token, as a chat template's, gets no second."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        # Not verbose: what is longer than the model is cut here, and reported.
        return self.tokenizer(string, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write a conversation in LLaDA's chat template; without `add_generation_prompt` its last turn goes on."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def all_gather(self, tensor: Any) -> Any:
        return self.processes.all_gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        return self.processes.gather_object(obj, dst)

    def barrier(self) -> None:
        self.processes.barrier()

    def _prepare_request(self, generation_kwargs: dict[str, Any]) -> tuple[list[str], LLaDAGenerationConfig]:
        """Return the strings that end an answer, and the options of a task with those of the arguments."""
        until, options, unused = read_task_options(generation_kwargs, self.options.generation)
        if unused and self.rank == 0:
            logger.warning(
                "These of the task's `generation_kwargs` are not used, because the model's arguments override them or "
                "masked diffusion has no such option: %s.",
                ", ".join(f"{name}={generation_kwargs.get(name)!r}" for name in unused),
            )
        config: Any = self.generation_config.updated(**options)
        if config.max_new_tokens is None:
            config = config.updated(max_length=self.max_length)
        return until, config

    def _encode_request(self, request: Instance, lost: Truncation) -> Pair:
        """Encode context and continuation, with as much of the context as there is room for."""
        text, continuation_text = request.args
        if text:
            context, continuation = self._encode_pair(text, continuation_text)
        else:
            continuation = self.tok_encode(continuation_text, add_special_tokens=False)
            begins = continuation[:1] == [self.prefix_token_id]
            context, continuation = [self.prefix_token_id], continuation[1:] if begins else continuation
        if not 1 <= len(continuation) <= self.max_length:
            raise ValueError(
                f"`continuation` must have 1 to {self.max_length} tokens, got {len(continuation)} in question "
                f"{request.doc_id} of the task `{request.task_name}` ({continuation_text[:60]!r}); correct the task's "
                "data, or leave the question out."
            )
        return lost.fit(context, self.max_length - len(continuation)), tuple(continuation)

    def _encode_prompt(self, request: Instance, config: Any, lost: Truncation) -> Ids:
        """Encode a prompt, with as much of it as the canvas leaves room for."""
        canvas = config.max_new_tokens or config.block_length
        if canvas >= self.max_length:
            raise ValueError(
                f"`max_new_tokens` must leave room for a prompt in the model's {self.max_length} tokens, got {canvas} "
                f"for the task `{request.task_name}`; pass a smaller `max_new_tokens`, which overrides the task's."
            )
        return lost.fit(self.tok_encode(request.args[0]) or [self.prefix_token_id], self.max_length - canvas)

    def _report(self, kind: str, lost: Truncation) -> None:
        """Add up over the processes what was cut off, and say so once."""
        num_requests, num_tokens = self.processes.sum([lost.num_requests, lost.num_tokens], self._own_device)
        self.num_truncated[kind] = self.num_truncated.get(kind, 0) + num_requests
        if num_requests and self.rank == 0:
            logger.warning(
                "%s: %d requests were longer than %d tokens with their answers; they lost their beginnings, %d tokens "
                "in all.",
                kind,
                num_requests,
                self.max_length,
                num_tokens,
            )

    def _score(self, pairs: Sequence[Pair], quiet: bool) -> list[float]:
        """Score continuations by what `scoring` says, nats."""
        if self.options.scoring == "confidence_order":
            return self._score_in_order("confidence_order", score_in_confidence_order, pairs, quiet)
        options = self.options.likelihood
        decides = dataclasses.asdict(options)
        del decides["max_batch_tokens"]
        estimate = partial(estimate_log_likelihoods, options=options)
        return [found[0] for found in self._score_pairs("likelihood", decides, pairs, estimate, quiet)]

    def _score_in_order(self, kind: str, score: Score, pairs: Sequence[Pair], quiet: bool) -> list[Any]:
        """Compute something of pairs by falling confidence of the model."""
        decides = {"cfg_scale": self.options.likelihood.cfg_scale}
        score = partial(score, max_batch_tokens=self.options.likelihood.max_batch_tokens, **decides)
        return self._score_pairs(kind, decides, pairs, score, quiet)

    def _score_pairs(
        self, kind: str, decides: dict[str, Any], pairs: Sequence[Pair], score: Score, quiet: bool
    ) -> list[Any]:
        """Compute something of pairs, which the options in `decides` decide."""

        def compute(work: list[Pair], progress: Progress) -> list[Any]:
            return score(self.model, work, progress=progress)

        settings = self._identity() | decides
        jobs = [Job(json_digest([kind, settings, pair]), len(pair[0]) + len(pair[1]), pair) for pair in pairs]
        return self._run(f"Scoring ({kind})", jobs, compute, PAIRS_PER_GROUP, quiet)

    def _answer(
        self, prompts: Sequence[tuple[Ids, int]], config: LLaDAGenerationConfig, until: Sequence[str], quiet: bool
    ) -> list[str]:
        """Answer prompts, several at a time.

        Args:
            prompts: token ids, and the number of each among its repeats, which draw differently if anything is drawn.
            config: complete options.
            until: strings that end an answer.
            quiet: show no progress.

        Returns:
            The texts, without what ended them and without special tokens.
        """
        draws, seed = config.samples or config.remasking == "random", self.options.seed
        settings = self._identity() | {"generation": options_of(config), "until": list(until), "seed": seed}
        jobs = []
        for ids, number in prompts:
            repeat = number if draws else 0
            key = json_digest(["answer", settings, [ids, repeat]])
            jobs.append(Job(key, len(ids), (ids, draw_seed(seed, ids, repeat))))

        def generate(work: list[Any], progress: Progress) -> list[str]:
            texts = [""] * len(work)
            ids, seeds = zip(*work)
            for found in generate_many(self.model, ids, self.batch_size, config, seeds):
                texts[found.index] = self._decode(found.ids, config, until)
                progress(1)
            return texts

        return self._run("Answering", jobs, generate, BATCHES_PER_GROUP * self.batch_size, quiet)

    def _run(
        self, title: str, jobs: list[Job], compute: Callable[..., list[Any]], group_size: int, quiet: bool
    ) -> list[Any]:
        """Compute what the cache lacks; the first process shows progress."""
        total = len({job.key for job in jobs})
        with tqdm(total=total, desc=title, disable=quiet or self.rank > 0 or total == 0) as bar:
            return run_jobs(jobs, compute, self._cache, group_size, bar.update)

    def _identity(self) -> dict[str, Any]:
        """Tell which model computes, and which code. Weights may have changed since the last call."""
        return {"model": model_digest(self.model, self.tokenizer), "version": version("llada-hf")}

    def _decode(self, ids: Sequence[int], config: LLaDAGenerationConfig, until: Sequence[str]) -> str:
        """Return the text before the first token or string that ends it.

        A tokenizer without an end-of-turn token spells it out.
        """
        ends = {*config.eos_token_ids, config.eot_token_id}
        ends |= {n for n, token in self.tokenizer.added_tokens_decoder.items() if token.content in until}
        end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        end_of_turn = special_tokens(self.tokenizer).end_of_turn
        return cut_before(text, [*until, *([end_of_turn] if end_of_turn else [])])


def choose_device(name: str | None) -> torch.device:
    """Return the device `name`, or the best one; the CPU with a warning if it is a GPU that is not there."""
    has_cuda = torch.cuda.is_available()
    if name is not None and name.startswith("cuda") and not has_cuda:
        logger.warning("`device` is %s, but no GPU is available; computing on the CPU.", name)
        name = "cpu"
    return torch.device(name or ("cuda" if has_cuda else "cpu"))


def rolling_windows(ids: Sequence[int], prefix_id: int, max_length: int) -> list[tuple[Ids, Ids]]:
    """Cut a text into windows whose continuations make up the whole text, each token in one of them.

    Args:
        ids: the text.
        prefix_id: token that stands before the first window.
        max_length: longest window, context and continuation, at least 2.

    Returns:
        Context and continuation of each window. The first context is `prefix_id`; others are what precedes the
        continuation: one token, and in the last window as many as it has room for. Empty for an empty text.
    """
    # The harness counts what a causal model reads: everything but the last token.
    windows = get_rolling_token_windows(list(ids), prefix_id, max_seq_len=max_length - 1, context_len=1)
    return [(tuple(context), tuple(continuation)) for context, continuation in map(make_disjoint_window, windows)]


def stands_alone(requests: Sequence[Any]) -> list[bool]:
    """Tell for each request whether it is the only one of its question; its repeats do not count as others."""
    distinct = {id(request): (request.task_name, request.doc_id) for request in requests}
    sizes = Counter(distinct.values())
    return [sizes[request.task_name, request.doc_id] == 1 for request in requests]


def repeat_numbers(requests: Sequence[Any]) -> list[int]:
    """Number the occurrences of each request, from 0.

    The harness repeats a request that is to be answered several times. It also repeats the last one so that all
    processes have equally many; those begin again at 0.
    """
    seen: Counter[int] = Counter()
    numbers = []
    for request in requests:
        numbers.append(seen[id(request)] % (request.repeats or 1))
        seen[id(request)] += 1
    return numbers


def cut_before(text: str, ends: Iterable[str]) -> str:
    """Return `text` up to the first of `ends` in it."""
    found = [text.find(end) for end in ends if end]
    return text[: min((place for place in found if place >= 0), default=len(text))]


def draw_seed(seed: int, ids: Sequence[int], repeat: int) -> int:
    """Derive the seed of one answer's draws from the evaluation's seed, its prompt and the number of its repeat."""
    return int(json_digest([seed, list(ids), repeat])[:14], 16)


def options_of(config: LLaDAGenerationConfig) -> dict[str, Any]:
    """Return all options, as JSON values."""
    return {name: getattr(config, name) for name in DEFAULTS}


def _distinct(requests: list[Instance]) -> dict[int, Instance]:
    """Return each request once, by identity: repeats are the same object."""
    return {id(request): request for request in requests}
