"""Mix the conversations of `prepare_instructions.py` with plain text, so that the model does not forget how to write.

    python examples/llada_tiny/mix_text.py --data runs/llada-tiny-data

Writes mixed.jsonl into the folder: one row of token ids and labels per line, in an order drawn once. Every token of a
text is learnt, of a conversation what the assistant says.
"""

import argparse
import json
import random
from pathlib import Path

from prepare_instructions import read_jsonl
from transformers import PreTrainedTokenizerFast

from llada_core.tokenization import prepare_tokenizer
from llada_training import load_documents, pack_documents

SOURCES = ("plain.jsonl", "corpus.jsonl")
INSTRUCTIONS, OUTPUT = "instructions.jsonl", "mixed.jsonl"
# Longer than the recipe's `max_length`: texts are cut there, so none of them ends, and none gets an end-of-text token.
TEXT_TOKENS = 128
IGNORED = -100
SEED = 0


def main() -> None:
    """Tokenise, mix, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of prepare_data.py")
    options = parser.parse_args()
    tokenizer = prepare_tokenizer(PreTrainedTokenizerFast.from_pretrained(options.data / "tokenizer"))
    conversations = [conversation_row(tokenizer, row) for row in read_jsonl(options.data / INSTRUCTIONS)]
    texts = text_rows(tokenizer, options.data)
    draw = random.Random(SEED)
    draw.shuffle(texts)
    rows = conversations + texts[: len(conversations)]
    draw.shuffle(rows)
    with (options.data / OUTPUT).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print(f"{len(conversations)} conversations and {len(rows) - len(conversations)} texts: {options.data / OUTPUT}")


def conversation_row(tokenizer: PreTrainedTokenizerFast, row: dict) -> dict[str, list[int]]:
    """Token ids of a conversation, labels where the assistant speaks."""
    encoded = tokenizer.apply_chat_template(row["messages"], return_assistant_tokens_mask=True, return_dict=True)
    ids, is_said = encoded["input_ids"], encoded["assistant_masks"]
    return {"input_ids": ids, "labels": [token if said else IGNORED for token, said in zip(ids, is_said)]}


def text_rows(tokenizer: PreTrainedTokenizerFast, folder: Path) -> list[dict[str, list[int]]]:
    """Rows of `TEXT_TOKENS` tokens, every one of them learnt."""
    documents = load_documents([str(folder / name) for name in SOURCES])
    packed = pack_documents(documents, tokenizer, TEXT_TOKENS, len(tokenizer), tokenizer.mask_token_id)
    return [{"input_ids": ids, "labels": ids} for ids in packed["input_ids"] if len(ids) == TEXT_TOKENS]


if __name__ == "__main__":
    main()
