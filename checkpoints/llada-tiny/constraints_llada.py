"""What options ask of the text: penalties, biases and bans on the logits of masked positions, and texts that end a row.

The penalties and biases are transformers' own classes. They expect a text that grows to the right, so each one is
shown, for every masked position, the part of the canvas that it is about: in order of position, without padding.

Shape legend: R rows that take part in the next pass, P positions of the canvas, K positions scored, V vocabulary.
"""

from collections.abc import Callable, Iterable
from typing import Any, Optional

import torch
from torch import Tensor
from transformers.generation import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from .canvas_llada import Canvas
from .generation_config_llada import LLaDAGenerationConfig
from .unmasking_llada import process

# Options that change the logits of masked positions.
CONSTRAINTS = (
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "min_new_tokens",
)
# A processor of transformers: (ids, logits) to logits.
Processor = Callable[[Tensor, Tensor], Tensor]


class Constraints:
    """The options in `CONSTRAINTS` that are set, applied in transformers' order, and then the caller's processors.

    Args:
        config: checked options.
        device: where the logits are.
        processors: the caller's; each maps (ids [num_scored, seq], logits) to logits, see `process`.
    """

    def __init__(self, config: LLaDAGenerationConfig, device: torch.device, processors: Iterable[Processor] = ()):
        self.is_set = any(getattr(config, name) for name in CONSTRAINTS)
        self.processors = list(processors)
        self.mask_token_id = config.mask_token_id
        self.num_without_end = config.min_new_tokens or 0
        self.ngram_size = config.no_repeat_ngram_size or 0
        self.words = completions(config.sequence_bias or [])
        self.penalty: Optional[Processor] = None
        if config.repetition_penalty not in (None, 1.0):
            self.penalty = RepetitionPenaltyLogitsProcessor(float(config.repetition_penalty))
        eos_ids = list(config.eos_token_ids)
        # As in transformers, the end of text is no bad word.
        bad_words = [[word, -torch.inf] for word in config.bad_words_ids or [] if word not in [[i] for i in eos_ids]]
        self.words += completions(bad_words)

        def ban(ids: Optional[list[int]]) -> Optional[Processor]:
            return SuppressTokensLogitsProcessor(ids, device=device) if ids else None

        self.never, self.not_first = ban(config.suppress_tokens), ban(config.begin_suppress_tokens)
        self.no_end = ban(eos_ids if self.num_without_end else None)

    def __call__(self, canvas: Canvas, is_masked: Tensor, start: int, logits: Tensor) -> Tensor:
        """Change the logits of a block's masked positions.

        Args:
            canvas: its active rows give the context.
            is_masked: bool [active, block].
            start: first column of the block.
            logits: [num_scored, vocab].

        Returns:
            [num_scored, vocab].

        Raises:
            ValueError: as `process`.
        """
        if self.is_set:
            logits = self._apply_options(canvas, is_masked, start, logits)
        if self.processors:
            logits = process(self.processors, canvas.ids[canvas.rows][is_masked.nonzero()[:, 0]], logits)
        return logits

    def _apply_options(self, canvas: Canvas, is_masked: Tensor, start: int, logits: Tensor) -> Tensor:
        """Apply the options; the mask token's logits stay as they were."""
        of_mask = logits[:, self.mask_token_id].clone()
        text, positions, prompt_lengths = in_order(canvas, is_masked, start)
        for processor, num_left, num_right in self.words:
            logits = processor(neighbours(text, positions, num_left, num_right, self.mask_token_id), logits)
        if self.penalty is not None:
            # Masks would count as a repeated token; another token of the row in their place changes nothing.
            is_text = text != self.mask_token_id
            known = text.gather(1, is_text.int().argmax(1, keepdim=True))
            logits = self.penalty(torch.where(is_text, text, known), logits)
        if self.ngram_size:
            context = neighbours(text, positions, text.shape[1], 0, self.mask_token_id)
            is_known = (context[:, context.shape[1] + 1 - self.ngram_size :] != self.mask_token_id).all(1, keepdim=True)
            logits = torch.where(is_known, NoRepeatNGramLogitsProcessor(self.ngram_size)(context, logits), logits)
        if self.never is not None:
            logits = self.never(text, logits)
        offsets = (positions - prompt_lengths)[:, None]
        if self.not_first is not None:
            logits = torch.where(offsets == 0, self.not_first(text, logits), logits)
        if self.no_end is not None:
            logits = torch.where(offsets < self.num_without_end, self.no_end(text, logits), logits)
        return logits.index_copy(
            1, torch.tensor([self.mask_token_id], device=logits.device), of_mask[:, None].to(logits)
        )


def completions(words: list) -> list[tuple[Processor, int, int]]:
    """Processors that add a bias to each token of a word whose other tokens are known.

    Args:
        words: `[[ids, bias], ...]`.

    Returns:
        Processors, each with the tokens to the left and right of a position that it is to be shown.
    """
    places: dict[tuple[int, int], dict[tuple[int, ...], float]] = {}
    for ids, bias in words:
        for index, token in enumerate(ids):
            others = (*ids[:index], *ids[index + 1 :])
            # One token more: transformers 4 skips words that are longer than the text before their last token.
            biases = places.setdefault((index + 1, len(ids) - 1 - index), {})
            biases[(*others, token)] = float(bias)
    return [(SequenceBiasLogitsProcessor(biases), *place) for place, biases in places.items()]


def in_order(canvas: Canvas, is_masked: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
    """The active rows as text, from the first position to the last.

    Args:
        canvas: its columns may hold padding, or stand in another order.
        is_masked: bool [active, block].
        start: first column of the block.

    Returns:
        For every scored position, its row's ids by position, masks where nothing stands, int64 [num_scored,
        positions]; its position, int64 [num_scored]; its row's tokens that were given, int64 [num_scored].
    """
    rows, columns = is_masked.nonzero().unbind(-1)
    ids, is_given = canvas.ids[canvas.rows], canvas.is_given[canvas.rows]
    if canvas.position_ids is None:
        return ids[rows], start + columns, is_given.sum(-1)[rows]
    positions = places = canvas.position_ids[canvas.rows]
    width = int(positions.max()) + 1
    if canvas.attention_mask is not None:
        is_valid = canvas.attention_mask[canvas.rows]
        is_given = is_given & is_valid
        places = positions.masked_fill(~is_valid, width)  # padding goes into a place that is cut off
    text = ids.new_full((len(ids), width + 1), canvas.mask_token_id).scatter(1, places, ids)[:, :width]
    return text[rows], positions[rows, start + columns], is_given.sum(-1)[rows]


def neighbours(text: Tensor, positions: Tensor, num_left: int, num_right: int, mask_token_id: int) -> Tensor:
    """Tokens to the left and to the right of positions, masks beyond the ends; int64 [num_scored, left + right].

    Args:
        text: ids by position; int64 [num_scored, positions].
        positions: int64 [num_scored].
        num_left, num_right: tokens on each side.
        mask_token_id: id of the mask.
    """
    steps = [*range(-num_left, 0), *range(1, num_right + 1)]
    places = positions[:, None] + torch.tensor(steps, dtype=torch.long, device=text.device)
    is_outside = (places < 0) | (places >= text.shape[1])
    return text.gather(1, places.clamp(0, text.shape[1] - 1)).masked_fill(is_outside, mask_token_id)


def sampling_warpers(config: LLaDAGenerationConfig) -> LogitsProcessorList:
    """What makes logits the distribution to draw from, in the order of transformers."""
    warpers = LogitsProcessorList()
    if config.temperature != 1:
        warpers.append(TemperatureLogitsWarper(float(config.temperature)))
    if config.top_k is not None:
        warpers.append(TopKLogitsWarper(config.top_k))
    if config.top_p is not None and config.top_p < 1:
        warpers.append(TopPLogitsWarper(config.top_p))
    if config.min_p:
        warpers.append(MinPLogitsWarper(float(config.min_p)))
    if config.typical_p is not None and config.typical_p < 1:
        warpers.append(TypicalLogitsWarper(config.typical_p))
    if config.epsilon_cutoff:
        warpers.append(EpsilonLogitsWarper(config.epsilon_cutoff))
    if config.eta_cutoff:
        warpers.append(EtaLogitsWarper(config.eta_cutoff))
    return warpers


def cut_at_texts(ids: list[int], num_read: int, stop_strings: list[str], tokenizer: Any) -> Optional[int]:
    """Look for a text that ends an answer.

    Args:
        ids: the answer so far.
        num_read: tokens in which no text was found before.
        stop_strings: any of these ends the answer.
        tokenizer: decodes the ids, special tokens included.

    Returns:
        Tokens of the answer up to the one that completes the first of the texts; None if there is none.
    """

    def is_stopped(num_tokens: int) -> bool:
        text = tokenizer.decode(ids[:num_tokens], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(stop in text for stop in stop_strings)

    if not is_stopped(len(ids)):
        return None
    return next(count for count in range(num_read + 1, len(ids) + 1) if is_stopped(count))
