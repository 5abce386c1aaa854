"""LLaDA as a model of lm-evaluation-harness: `--model llada --model_args pretrained=…,mc_num=128,steps=256`.

The harness knows no plug-ins. Importing `llada_evaluation` adds the model to its registry, so `llada evaluate` and
`python -m llada_evaluation …`, which takes the arguments of `lm_eval`, know it; a bare `lm_eval` does not.
"""

import dataclasses
import json
import logging
from importlib.metadata import version
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from llada_core.loading import Checkpoint, load_checkpoint
from modeling_llada import LLaDAGenerationConfig

from .data_parallel import Processes
from .digest import model_digest
from .harness_options import HarnessOptions, read_arguments
from .harness_requests import Ids, Truncation, repeat_numbers, rolling_windows, settle_request, stands_alone
from .harness_work import Pair, Worker, options_of

logger = logging.getLogger(__name__)


class LLaDAHarnessModel(TemplateLM):
    """Answers the requests of lm-evaluation-harness.

    A result depends on the model, the arguments and the request; not on the order of the requests and, but for
    rounding, not on what is computed together. An evaluation gives the same results twice, and after an interruption.

    Args:
        pretrained: folder or Hub id, unset for the bundled model; or a model, with its `tokenizer`.
        arguments: fields of `HarnessOptions` and `LikelihoodOptions` and options of `LLaDAGenerationConfig`. Options of
            generation that are named here come before a task's `generation_kwargs`; a warning names what is not used.

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
        self.processes = Processes(self.options.device)
        self._rank, self._world_size = self.processes.rank, self.processes.num_processes
        checkpoint = self._load()
        self.model, self.tokenizer = checkpoint.model, checkpoint.tokenizer
        self._device = self.model.device
        self._max_length = self.options.longest_text(self.model.config.max_sequence_length)
        self.generation_config = checkpoint.options.updated(**self.options.generation).completed(self.model.config)
        self.num_truncated: dict[str, int] = {}
        self._worker = Worker(self.model, self.tokenizer, self.options, self._rank)

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
        scores = self._worker.score(pairs, disable_tqdm)
        checked = [pair for pair, is_checked in zip(pairs, options.get("checks", ())) if is_checked]
        is_greedy = dict(zip(checked, self._worker.check_greedy(checked, disable_tqdm)))
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
            until, config = self._settle_request(requests[indexes[0]].args[1])
            chosen = _distinct([requests[index] for index in indexes])
            prompts = {number: self._encode_prompt(request, config, lost) for number, request in chosen.items()}
            texts = self._worker.answer(
                [prompts[id(requests[index])] for index in indexes],
                [repeats[index] for index in indexes],
                config,
                until,
                disable_tqdm,
            )
            answers.update(zip(indexes, texts))
        self._report("generate_until", lost)
        return [answers[index] for index in range(len(requests))]

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes into its results: the model and every setting, as JSON values."""
        settings = {
            name: value
            for name, value in vars(self.options).items()
            if name not in ("pretrained", "tokenizer", "likelihood", "generation")
        }
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
        """See `Processes.all_gather`."""
        return self.processes.all_gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """See `Processes.gather_object`."""
        return self.processes.gather_object(obj, dst)

    def barrier(self) -> None:
        """See `Processes.barrier`."""
        self.processes.barrier()

    def _load(self) -> Checkpoint:
        options = self.options
        if options.tokenizer is not None:
            return Checkpoint.of(options.pretrained, options.tokenizer)
        return load_checkpoint(options.pretrained, self.processes.device, options.dtype, options.revision)

    def _settle_request(self, generation_kwargs: dict[str, Any]) -> tuple[list[str], LLaDAGenerationConfig]:
        """Return the strings that end an answer, and the options of a task with those of the arguments."""
        until, options, unused = settle_request(generation_kwargs, self.options.generation)
        if unused and self.rank == 0:
            logger.warning(
                "These of the task's `generation_kwargs` are not used, because the model's arguments come before them "
                "or masked diffusion has no such option: %s.",
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
        canvas = config.max_new_tokens or config.longest_block
        if canvas >= self.max_length:
            raise ValueError(
                f"`max_new_tokens` must leave room for a prompt in the model's {self.max_length} tokens, got {canvas} "
                f"for the task `{request.task_name}`; pass a smaller `max_new_tokens`, which comes before the task's."
            )
        return lost.fit(self.tok_encode(request.args[0]) or [self.prefix_token_id], self.max_length - canvas)

    def _report(self, kind: str, lost: Truncation) -> None:
        """Add up over the processes what was cut off, and say so once."""
        num_requests, num_tokens = self.processes.sum([lost.num_requests, lost.num_tokens])
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


def _distinct(requests: list[Instance]) -> dict[int, Instance]:
    """Return each request once, by identity: repeats are the same object."""
    return {id(request): request for request in requests}
