"""What a person and the model say to each other: the turns that still fit, where an answer ends, text safe to show."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from .tokenization import encode_chat

# Control characters but for tab and newline: a model must not move the cursor, and XML forbids them.
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")


class Conversation:
    """The turns so far, kept short enough for the model.

    Args:
        tokenizer: one that went through `prepare_tokenizer`.
        max_prompt_length: tokens that the encoded conversation may have.
        system: an instruction that opens the conversation and is never dropped.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_prompt_length: int, system: str | None = None):
        self.tokenizer = tokenizer
        self.max_prompt_length = max_prompt_length
        self.system = [] if system is None else [{"role": "system", "content": system}]
        self.turns: list[dict[str, str]] = []

    def ask(self, text: str) -> tuple[list[int], int]:
        """Add the user's turn, and drop the oldest exchanges until everything fits.

        Returns:
            The encoded conversation, which ends where the assistant begins; and the number of exchanges dropped.

        Raises:
            ValueError: if the turn is too long on its own or contains the mask token; the conversation stays as it was.
        """
        if self.tokenizer.mask_token in text:
            raise ValueError(
                f"A turn must not contain {self.tokenizer.mask_token}; `llada generate --infill` fills masks."
            )
        turn = {"role": "user", "content": text}
        for num_dropped in range(len(self.turns) // 2 + 1):
            turns = [*self.turns[2 * num_dropped :], turn]
            ids = encode_chat(self.tokenizer, self.system + turns)
            if len(ids) <= self.max_prompt_length:
                self.turns = turns
                return ids, num_dropped
        raise ValueError(
            f"This turn has {len(ids)} tokens with its headers, but only {self.max_prompt_length} fit beside the "
            "answer; shorten it, or pass a smaller --max-new-tokens."
        )

    def reply(self, text: str) -> None:
        """Add the assistant's turn."""
        self.turns.append({"role": "assistant", "content": text})

    def reset(self) -> None:
        """Forget every turn but the system's."""
        self.turns = []


def cut_at_stop(ids: list[int], stop_ids: Iterable[int], mask_token_id: int) -> list[int]:
    """Return `ids` up to the first stop token; all of them if a masked position comes before it."""
    stops = set(stop_ids)
    for position, token_id in enumerate(ids):
        if token_id == mask_token_id:
            return ids
        if token_id in stops:
            return ids[:position]
    return ids


def printable(text: str) -> str:
    """Replace control characters, which would steer a terminal, but keep tabs and newlines."""
    return text.translate(_CONTROLS)
