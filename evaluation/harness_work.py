"""What the harness's requests come down to: scores, greedy checks and answers, each looked up in the result cache."""

import dataclasses
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from tqdm import tqdm

from llada_core.tokenization import EOT_TOKEN
from modeling_llada import LLaDAGenerationConfig, generate_many
from modeling_llada.generation_config_llada import DEFAULTS

from .confidence_order import matches_greedy_decoding, score_in_confidence_order
from .digest import model_digest
from .harness_options import HarnessOptions
from .harness_requests import Ids, cut_before, draw_seed
from .likelihood import estimate_log_likelihoods
from .result_cache import Job, ResultCache, request_key, run_jobs

# Pairs that are scored, and batches of prompts that are answered, between two writes to the result cache.
PAIRS_PER_GROUP = 64
BATCHES_PER_GROUP = 4

Pair = tuple[Ids, Ids]


class Worker:
    """A model with its options and the results that are there already.

    Args:
        model: a LLaDA model.
        tokenizer: its tokenizer.
        options: those of the harness's model.
        rank: number of this process; the first shows progress.
    """

    def __init__(self, model: Any, tokenizer: Any, options: HarnessOptions, rank: int):
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.rank = rank
        self.cache = ResultCache(options.result_cache, rank)

    def score(self, pairs: Sequence[Pair], quiet: bool) -> list[float]:
        """Score continuations.

        Args:
            pairs: ids of context and continuation.
            quiet: show no progress.

        Returns:
            What `scoring` says, nats.
        """
        options = self.options.likelihood
        if self.options.scoring == "confidence_order":

            def score(work: list[Pair], progress: Callable[[int], Any]) -> list[float]:
                return score_in_confidence_order(
                    self.model,
                    work,
                    cfg_scale=options.cfg_scale,
                    max_batch_tokens=options.max_batch_tokens,
                    progress=progress,
                )

            return self._run("confidence_order", {"cfg_scale": options.cfg_scale}, pairs, score, quiet)

        def estimate(work: list[Pair], progress: Callable[[int], Any]) -> list[list[float]]:
            return [list(found) for found in estimate_log_likelihoods(self.model, work, options, progress)]

        decides = dataclasses.asdict(options)
        del decides["max_batch_tokens"]
        return [found[0] for found in self._run("likelihood", decides, pairs, estimate, quiet)]

    def check_greedy(self, pairs: Sequence[Pair], quiet: bool) -> list[bool]:
        """Find out whether greedy decoding gives each continuation; arguments as for `score`."""
        options = self.options.likelihood

        def check(work: list[Pair], progress: Callable[[int], Any]) -> list[bool]:
            return matches_greedy_decoding(
                self.model, work, options.cfg_scale, options.max_batch_tokens, progress=progress
            )

        return self._run("greedy_check", {"cfg_scale": options.cfg_scale}, pairs, check, quiet)

    def answer(
        self,
        prompts: Sequence[Ids],
        repeats: Sequence[int],
        config: LLaDAGenerationConfig,
        until: Sequence[str],
        quiet: bool,
    ) -> list[str]:
        """Answer prompts, several at a time.

        Args:
            prompts: token ids.
            repeats: number of each among its repeats, which draw differently if anything is drawn.
            config: complete options.
            until: strings that end an answer.
            quiet: show no progress.

        Returns:
            The texts, without what ended them and without special tokens.
        """
        draws = config.samples or config.remasking == "random"
        seed = self.options.seed
        settings = self._identity() | {"generation": options_of(config), "until": list(until), "seed": seed}
        jobs = []
        for ids, number in zip(prompts, repeats):
            repeat = number if draws else 0
            key = request_key("answer", settings, [ids, repeat])
            jobs.append(Job(key, len(ids), (ids, draw_seed(seed, ids, repeat))))

        def generate(work: list[Any], progress: Callable[[int], Any]) -> list[str]:
            texts = [""] * len(work)
            ids, seeds = zip(*work)
            for found in generate_many(self.model, ids, self.options.batch_size, config, seeds):
                texts[found.index] = self._decode(found.ids, config, until)
                progress(1)
            return texts

        group_size = BATCHES_PER_GROUP * self.options.batch_size
        with self._bar("Answering", jobs, quiet) as bar:
            return run_jobs("answer", jobs, generate, self.cache, group_size, bar.update)

    def _run(
        self,
        kind: str,
        decides: dict[str, Any],
        pairs: Sequence[Pair],
        compute: Callable[[list[Any], Callable[[int], Any]], list[Any]],
        quiet: bool,
    ) -> list[Any]:
        """Compute something of pairs, which the options in `decides` decide."""
        settings = self._identity() | decides
        jobs = [Job(request_key(kind, settings, pair), len(pair[0]) + len(pair[1]), pair) for pair in pairs]
        with self._bar(f"Scoring ({kind})", jobs, quiet) as bar:
            return run_jobs(kind, jobs, compute, self.cache, PAIRS_PER_GROUP, bar.update)

    def _identity(self) -> dict[str, Any]:
        """Tell which model computes, and which code. Weights may have changed since the last call."""
        return {"model": model_digest(self.model, self.tokenizer), "version": version("llada-hf")}

    def _bar(self, description: str, jobs: Sequence[Job], quiet: bool) -> Any:
        total = len({job.key for job in jobs})
        return tqdm(total=total, desc=description, disable=quiet or self.rank > 0 or total == 0)

    def _decode(self, ids: Sequence[int], config: LLaDAGenerationConfig, until: Sequence[str]) -> str:
        """Return the text before the first token or string that ends it.

        A tokenizer without an end-of-turn token spells it out.
        """
        ends = {*config.eos_token_ids, config.eot_token_id}
        ends |= {n for n, token in self.tokenizer.added_tokens_decoder.items() if token.content in until}
        end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cut_before(text, [*until, EOT_TOKEN])


def options_of(config: LLaDAGenerationConfig) -> dict[str, Any]:
    """Return all options, as JSON values."""
    return {name: getattr(config, name) for name in DEFAULTS}
