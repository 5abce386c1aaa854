"""The tokenizer of whole words: a name is one token, so that no name is misspelt; any other text goes by its bytes."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from vocabulary import PIECES, SPECIAL_TOKENS


def make_tokenizer(words: Iterable[str]) -> Tokenizer:
    """Make a byte-level tokenizer without merges: a piece of text is one token if it is in the vocabulary, else bytes.

    Ids: special tokens, the 256 bytes, then the words in their order. So words may be added to a trained model.

    Args:
        words: pieces of text as `pieces` cuts them, a leading space included.
    """
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [to_bytes.pre_tokenize_str(word)[0][0] for word in words]
    vocabulary = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([_splitter(), to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def pieces(text: str) -> list[str]:
    """The pieces that are one token each if the vocabulary has them."""
    return [piece for piece, _ in _splitter().pre_tokenize_str(text)]


def _splitter() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
