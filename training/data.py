"""Reads the data of a training, and makes pre-training sequences: documents joined by EOS and cut to length."""

import codecs
import contextlib
import errno
import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional

import datasets
import numpy as np
from datasets import Dataset, IterableDataset, concatenate_datasets, interleave_datasets, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

# Documents tokenised at once, and documents concatenated before the last sequence is cut short.
TOKENIZE_BATCH = 1000
PACK_BATCH = 10_000
FILE_FORMATS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
# An entry of `train_data`: a name, perhaps with a slice of its rows, perhaps with a weight.
_ENTRY = re.compile(r"(?P<name>.+?)(\[(?P<start>-?\d*):(?P<stop>-?\d*)\])?(\*(?P<weight>\d+\.?\d*|\.\d+))?")
# Draws the rows of a weight that is not whole: the same ones in every run.
WEIGHT_SEED = 0
Formats = tuple[tuple[str, ...], ...]
ALPACA = ("instruction", "output")
ALPACA_FURTHER = ("input", "system")
# Columns of each format of examples, the most telling first; the first that is there counts, others are left out.
EXAMPLE_FORMATS = (
    ("messages",),
    ("conversations",),
    ("prompt", "completion"),
    ALPACA,
    ("input_ids", "labels"),
    ("input_ids",),
    ("text",),
)
EXAMPLE_COLUMNS = (
    "`messages`, or `prompt` and `completion`, or `text`, or those of ShareGPT (`conversations`) or Alpaca "
    "(`instruction`, `output`)"
)
# Roles of ShareGPT by those of chat templates.
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
# Columns of messages, and those of texts or messages; the others hold numbers.
MESSAGE_COLUMNS = ("messages", "conversations")
TEXT_COLUMNS = ("prompt", "completion", "chosen", "rejected", "text", *ALPACA)
# Of these, the ones that hold no messages.
PLAIN_COLUMNS = ("text", *ALPACA)
EXCERPT_LENGTH = 80
FULL_DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextlib.contextmanager
def names_full_disk() -> Iterator[None]:
    """Say of a disk that is full where the data are prepared; also a decorator.

    Raises:
        OSError: in its place.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise OSError(
            f"No room to prepare the data in {datasets.config.HF_DATASETS_CACHE} ({error.strerror}); make room, or set "
            "the environment variable `HF_DATASETS_CACHE` to a folder on another disk."
        ) from error


@names_full_disk()
def load_documents(
    sources: list[str], text_column: str = "text", split: str = "train", config_name: Optional[str] = None
) -> Dataset:
    """Read documents.

    Args:
        sources: files, each `.txt` (one document per file), `.jsonl` or `.parquet` (one document per row, under
            `text_column`); folders of `Dataset.save_to_disk`; names or folders of `datasets` data sets. Each may
            have a slice and a weight, as in `parse_sources`.
        text_column: column that holds the text.
        split: split of a named data set.
        config_name: configuration of a named data set.

    Returns:
        A data set with the one column `text`.

    Raises:
        ValueError: if a file is missing or of another kind, the column is missing or no text, or there is nothing.
        OSError: if the disk is full.
    """
    return concatenate_datasets(
        [
            source.weighted(only_text(rows, "text" if _is_plain(source.name) else text_column, source.text))
            for source, rows in _read_sources(sources, split, config_name)
        ]
    )


@names_full_disk()
def load_examples(
    sources: list[str],
    split: str = "train",
    config_name: Optional[str] = None,
    formats: Formats = EXAMPLE_FORMATS,
    wanted: str = EXAMPLE_COLUMNS,
) -> Dataset:
    """Read examples, by default those of fine-tuning: conversations, prompts with completions, texts, or token ids.

    Args:
        sources: as in `load_documents`; a line of a file is one example.
        split, config_name: as in `load_documents`.
        formats: sets of columns, of which the first that is there is read.
        wanted: what a message says that there should be.

    Returns:
        A data set with the columns of one of `formats`; those of ShareGPT and Alpaca become `messages`.

    Raises:
        ValueError: if a file is missing or of another kind, no format fits, formats are mixed, or as `check_examples`.
        OSError: if the disk is full.
    """
    parts, chosen = [], {}
    for source, rows in _read_sources(sources, split, config_name):
        columns, read = choose_format(rows.column_names, source.text, formats, wanted)
        check_examples(rows.select_columns(list(columns)), source.text)
        rows = as_messages(rows.select_columns(read), columns)
        chosen[tuple(rows.column_names)] = source.text
        parts.append(source.weighted(rows))
    if len(chosen) > 1:
        found = "; ".join(f"{', '.join(columns)} in {source}" for columns, source in chosen.items())
        raise ValueError(f"All files must have the same columns, got {found}; bring them into one form.")
    return concatenate_datasets(parts)


def stream_documents(
    sources: list[str], text_column: str = "text", split: str = "train", config_name: Optional[str] = None
) -> IterableDataset:
    """As `load_documents`, but read while they are used; of several sources as many rows each as their weights say."""
    parts = []
    for source, rows in _stream_sources(sources, split, config_name):
        column = "text" if _is_plain(source.name) else text_column
        if column not in (names := _names_of(rows, source)):
            raise ValueError(f"`text_column` must be a column of {source.text} ({', '.join(names)}), got {column!r}.")
        rows = rows.select_columns([column])
        parts.append((source, rows if column == "text" else rows.rename_column(column, "text")))
    return _interleaved(parts)


def stream_examples(sources: list[str], split: str = "train", config_name: Optional[str] = None) -> IterableDataset:
    """As `load_examples`, but read while they are used, and neither checked nor brought into `messages` yet.

    Returns:
        Of several sources as many rows each as their weights say; the columns are those of the data.

    Raises:
        ValueError: if a file is missing, of another kind or empty, no format fits, or formats are mixed.
    """
    parts, chosen = [], {}
    for source, rows in _stream_sources(sources, split, config_name):
        _, read = choose_format(_names_of(rows, source), source.text)
        chosen[tuple(read)] = source.text
        parts.append((source, rows.select_columns(read)))
    if len(chosen) > 1:
        found = "; ".join(f"{', '.join(columns)} in {source}" for columns, source in chosen.items())
        raise ValueError(f"All files of a stream must have the same columns, got {found}; bring them into one form.")
    return _interleaved(parts)


@names_full_disk()
def load_prompts(
    sources: list[str], split: str = "train", config_name: Optional[str] = None, column: str = "prompt"
) -> Dataset:
    """Read prompts, texts or messages, with all columns beside them, which rewards may read.

    Args:
        sources: as in `load_documents`; a line of a file is one prompt.
        split, config_name: as in `load_documents`.
        column: of the prompts; it becomes `prompt`.

    Raises:
        ValueError: if a file is missing or of another kind, has no such column or others than the first one, and for
            a prompt that is missing.
        OSError: if the disk is full.
    """
    parts: list[Dataset] = []
    for source, rows in _read_sources(sources, split, config_name):
        if column not in rows.column_names:
            raise ValueError(
                f"Prompts must stand in the column `{column}`, got {', '.join(rows.column_names)} in {source.text}; "
                "pass `prompt_column`."
            )
        if column != "prompt":
            rows = rows.remove_columns({"prompt"} & set(rows.column_names)).rename_column(column, "prompt")
        check_examples(rows.select_columns(["prompt"]), source.text)
        if parts and set(rows.column_names) != set(parts[0].column_names):
            raise ValueError(
                f"All files must have the same columns, got others in {source.text}; bring them into one form."
            )
        parts.append(source.weighted(rows))
    return concatenate_datasets(parts)


def choose_format(
    names: list[str], source: str, formats: Formats = EXAMPLE_FORMATS, wanted: str = EXAMPLE_COLUMNS
) -> tuple[tuple[str, ...], list[str]]:
    """The first format whose columns are among `names`, and all columns to read: Alpaca has further ones.

    Raises:
        ValueError: if there is none.
    """
    columns = next((columns for columns in formats if set(columns) <= set(names)), None)
    if columns is None:
        raise ValueError(
            f"Examples must have the column {wanted}, got {', '.join(names)} in {source}; rename its columns."
        )
    return columns, [*columns, *(name for name in ALPACA_FURTHER if columns == ALPACA and name in names)]


def as_messages(rows: Dataset, columns: Optional[tuple[str, ...]]) -> Dataset:
    """Bring `rows` of ShareGPT or Alpaca, which have the format `columns`, into `messages`; others stay.

    Alpaca's `input` follows its `instruction`, after an empty line; `system` opens the conversation.
    """
    if columns not in (("conversations",), ALPACA):
        return rows
    old = [name for name in (*columns, *ALPACA_FURTHER) if name in rows.column_names]
    convert = _from_alpaca if columns == ALPACA else _from_sharegpt
    return rows.map(convert, remove_columns=old, desc="Reading conversations")


def _from_sharegpt(row: dict[str, Any]) -> dict[str, Any]:
    messages = []
    for message in row["conversations"]:
        role, words = message.get("from"), message.get("value")
        role = message.get("role") if role is None else role
        words = message.get("content") if words is None else words
        kept = {name: message[name] for name in ("tool_calls",) if name in message}
        messages.append({"role": ROLES.get(role, role), "content": words} | kept)
    return {"messages": messages}


def _from_alpaca(row: dict[str, Any]) -> dict[str, Any]:
    for name in ALPACA_FURTHER:
        if not isinstance(row.get(name) or "", str):
            raise ValueError(f"`{name}` must hold text, got {row[name]!r}; correct the row.")
    asked = "\n\n".join(text for text in (row["instruction"], row.get("input")) if text)
    turns = [("system", row.get("system")), ("user", asked), ("assistant", row["output"])]
    return {"messages": [{"role": role, "content": text} for role, text in turns if text or role != "system"]}


def columns_of_format(rows: Dataset, formats: Formats = EXAMPLE_FORMATS) -> Optional[tuple[str, ...]]:
    """The columns of the first format that `rows` have, or None."""
    return next((columns for columns in formats if set(columns) <= set(rows.column_names)), None)


def check_examples(rows: Dataset, source: str) -> Dataset:
    """Refuse examples with values that are missing, or neither text nor messages where such are needed.

    Args:
        rows: data set with the columns of one format only.
        source: what they are called in messages, e.g. the file.

    Returns:
        The rows.

    Raises:
        ValueError: in these cases, and for an empty list of messages or a message without role or content.
    """
    _filled(rows, source)
    for column in rows.column_names:
        is_text = getattr(rows.features[column], "dtype", None) in ("string", "large_string")
        if column not in MESSAGE_COLUMNS + TEXT_COLUMNS or (is_text and column in TEXT_COLUMNS):
            continue
        for index, value in enumerate(rows[column]):
            if fault := _fault(value, column):
                raise ValueError(f"`{column}` must hold {fault} in row {index} of {source}; correct the row.")
    return rows


def _fault(value: Any, column: str) -> str:
    """What a value of an example should be, and is instead; empty if it is right."""
    if isinstance(value, str) and column in TEXT_COLUMNS:
        return ""
    if column in PLAIN_COLUMNS:
        return f"text, got {type(value).__name__}"
    if not isinstance(value, list) or not value:
        wanted = "a list of messages" if column in MESSAGE_COLUMNS else "text or a list of messages"
        return f"{wanted}, got {'an empty list' if value == [] else type(value).__name__}"
    return next((fault for message in value if (fault := _fault_of_message(message))), "")


def _fault_of_message(message: Any) -> str:
    if not isinstance(message, dict):
        return f"messages, which are objects, got {type(message).__name__}"
    role, content = ("from", "value") if message.get("from") is not None else ("role", "content")
    if not isinstance(message.get(role), str):
        return f"messages with a text as `{role}`, got {message.get(role)!r}"
    # Some templates take words in parts, and a message that calls tools needs no words.
    is_silent = message.get(content) is None and bool(message.get("tool_calls"))
    if not is_silent and not isinstance(message.get(content), (str, list)):
        return f"messages with a text as `{content}`, got {message.get(content)!r}"
    return ""


@names_full_disk()
def pack_documents(
    documents: Dataset,
    tokenizer: Any,
    sequence_length: int,
    vocab_size: int,
    mask_token_id: int,
    num_proc: Optional[int] = None,
    first: int = 0,
) -> Dataset:
    """Tokenise documents, put EOS after each, concatenate them and cut the stream to equal lengths.

    No token is dropped: the last sequence of every `PACK_BATCH` documents may be shorter.

    Args:
        documents: data set with the column `text`.
        tokenizer: with an EOS token; nothing else is added.
        sequence_length: tokens of each sequence.
        vocab_size, mask_token_id: as in `check_ids`.
        num_proc: processes that tokenise. The result does not depend on it.
        first: `example_id` of the first sequence.

    Returns:
        A data set with `input_ids` (int32) and `example_id`, the number of the sequence (int64).

    Raises:
        ValueError: if the tokenizer has no EOS, a document holds the mask token or an id that the model does not
            have, or there is no token at all.
        OSError: if the disk is full.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "`tokenizer` must have an EOS token, which separates documents, got none; set `tokenizer.eos_token`."
        )
    tokens = documents.map(
        _tokenize,
        batched=True,
        batch_size=TOKENIZE_BATCH,
        with_indices=True,
        remove_columns=documents.column_names,
        num_proc=num_proc,
        fn_kwargs={"tokenizer": tokenizer, "vocab_size": vocab_size, "mask_token_id": mask_token_id},
        desc="Tokenizing documents",
    )
    packed = tokens.with_format("arrow").map(
        _pack,
        batched=True,
        batch_size=PACK_BATCH,
        remove_columns=tokens.column_names,
        fn_kwargs={"sequence_length": sequence_length},
        desc=f"Packing into sequences of {sequence_length}",
    )
    if not len(packed):
        raise ValueError("The documents must hold at least one token, got only empty texts.")
    return packed.with_format(None).add_column("example_id", np.arange(first, first + len(packed)))


def check_ids(ids: list[int], name: str, mask_token_id: int, vocab_size: int, excerpt: str = "") -> None:
    """Refuse a text that holds the mask token or an id that the model does not have.

    Args:
        ids: the text's token ids, or their labels where they are learnt.
        name: what the text is called in messages, e.g. `document 3`.
        mask_token_id: id that stands for the mask.
        vocab_size: ids must be below it; the model's embedding size.
        excerpt: part of the text to show.

    Raises:
        ValueError: in these cases.
    """
    shown = f", {excerpt!r}" if excerpt else ""
    if mask_token_id in ids:
        raise ValueError(
            f"The text must not hold the mask token (id {mask_token_id}), which stands for hidden text, got it in "
            f"{name}{shown}; remove it from the text."
        )
    if ids and min(ids) < 0:
        raise ValueError(
            f"Token ids must be at least 0, got {min(ids)} in {name}; use the model's own `tokenizer`, and -100 in "
            "`labels` for what is not learnt."
        )
    if ids and max(ids) >= vocab_size:
        raise ValueError(
            f"Token ids must be below the model's `embedding_size` ({vocab_size}), got {max(ids)} in {name}{shown}; "
            "use the model's own `tokenizer`, or a larger `vocab_size`."
        )


def _tokenize(batch: dict, indices: list[int], tokenizer: Any, vocab_size: int, mask_token_id: int) -> dict:
    encoded = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False, verbose=False)
    mask = tokenizer.decode([mask_token_id])
    for index, text, ids in zip(indices, batch["text"], encoded["input_ids"]):
        start = max(text.find(mask) - EXCERPT_LENGTH // 2, 0)
        check_ids(ids, f"document {index}", mask_token_id, vocab_size, text[start : start + EXCERPT_LENGTH])
    # An empty document would only add a second EOS.
    return {"input_ids": [[*ids, tokenizer.eos_token_id] for ids in encoded["input_ids"] if ids]}


def _pack(table: Any, sequence_length: int) -> dict:
    stream = table["input_ids"].combine_chunks().flatten().to_numpy().astype(np.int32)
    return {"input_ids": [stream[start : start + sequence_length] for start in range(0, len(stream), sequence_length)]}


@dataclass(frozen=True)
class Source:
    """One entry of `train_data`.

    Attributes:
        text: the entry as it was given.
        name: a file, a folder or the name of a data set.
        start, stop: the rows that are read, as in a slice.
        weight: how many times a pass over the data has them.
    """

    text: str
    name: str
    start: Optional[int] = None
    stop: Optional[int] = None
    weight: float = 1.0

    def sliced(self, rows: Dataset) -> Dataset:
        """Those of the rows that the entry names.

        Raises:
            ValueError: if there are none.
        """
        if self.start is None and self.stop is None:
            return rows
        chosen = range(len(rows))[self.start : self.stop]
        if not chosen:
            raise ValueError(f"`{self.text}` must leave at least one of {len(rows)} rows, got none; widen the slice.")
        return rows.select(chosen)

    def weighted(self, rows: Dataset) -> Dataset:
        """The rows as many times as the weight says; of a share of one pass, a part that is drawn once for all."""
        if self.weight == 1:
            return rows
        times, share = divmod(self.weight, 1)
        drawn = np.random.default_rng(WEIGHT_SEED).permutation(len(rows))[: round(share * len(rows))]
        chosen = np.concatenate([np.tile(np.arange(len(rows)), int(times)), np.sort(drawn)])
        if not len(chosen):
            raise ValueError(f"`{self.text}` must leave at least one of {len(rows)} rows, got none; raise the weight.")
        return rows.select(chosen)


def parse_sources(entries: list[str]) -> list[Source]:
    """Read the entries of `train_data`: `name`, `name[start:stop]`, `name*weight`, or several joined by `+`.

    A name that exists as a file or folder is taken as it is, whatever is in it.

    Raises:
        ValueError: for an entry that is none of these.
    """
    sources = []
    for entry in entries:
        whole = _ENTRY.fullmatch(entry)
        is_one = os.path.exists(entry) or (whole is not None and os.path.exists(whole["name"]))
        sources += [_parse_source(part) for part in ([entry] if is_one else entry.split("+"))]
    return sources


def _parse_source(text: str) -> Source:
    match = _ENTRY.fullmatch(text)
    if os.path.exists(text):
        return Source(text, text)
    if match is None or (set("[]*") & set(match["name"]) and not os.path.exists(match["name"])):
        raise ValueError(
            f"An entry of `train_data` must be like data.jsonl, data.jsonl[:1000] or data.jsonl*2, got {text!r}; give "
            "it a name, and a slice before a weight."
        )
    start, stop = (int(match[side]) if match[side] else None for side in ("start", "stop"))
    weight = float(match["weight"] or 1)
    if weight <= 0:
        raise ValueError(f"The weight of an entry of `train_data` must be above 0, got {text!r}; leave the entry out.")
    return Source(text, match["name"], start, stop, weight)


def _read_sources(sources: list[str], split: str, config_name: Optional[str]) -> list[tuple[Source, Dataset]]:
    """Read files and data sets, as in `load_documents`, with all their columns; each with its entry."""
    if not sources:
        raise ValueError("`train_data` must name files or a data set, got nothing; pass e.g. train_data=corpus.jsonl.")
    return [
        (
            source,
            source.sliced(
                _load_file(source.name) if is_file(source.name) else _load_named(source.name, split, config_name)
            ),
        )
        for source in parse_sources(sources)
    ]


def _stream_sources(
    sources: list[str], split: str, config_name: Optional[str]
) -> Iterator[tuple[Source, IterableDataset]]:
    """As `_read_sources`, but read while they are used."""
    for source in parse_sources(sources):
        if is_file(source.name):
            rows = _stream_file(source.name)
        elif _is_saved(source.name):
            rows = _load_named(source.name, split, config_name).to_iterable_dataset()
        else:
            rows = load_dataset(source.name, config_name, split=split, streaming=True)
        start, stop = source.start or 0, source.stop
        if start < 0 or (stop is not None and stop < start):
            raise ValueError(f"A slice of a stream must count from its first row, got {source.text!r}; correct it.")
        rows = rows.skip(start) if start else rows
        yield source, rows if stop is None else rows.take(stop - start)


def _stream_file(path: str) -> IterableDataset:
    try:
        return load_dataset(**_file_options(path), split="train", streaming=True)
    except StopIteration:  # `datasets` looks for the columns in the first row
        raise ValueError(f"{path} must hold at least one row, got none; name another one.") from None


def _names_of(rows: IterableDataset, source: Source) -> list[str]:
    """The columns of the first row."""
    first = next(iter(rows), None)
    if first is None:
        raise ValueError(f"{source.text} must hold at least one row, got none; name another one.")
    return list(first)


def _interleaved(parts: list[tuple[Source, IterableDataset]]) -> IterableDataset:
    """One stream, which ends when all its parts have ended; shorter ones begin again."""
    if len(parts) == 1:
        return parts[0][1]
    total = sum(source.weight for source, _ in parts)
    shares = [source.weight / total for source, _ in parts]
    return interleave_datasets(
        [rows for _, rows in parts], probabilities=shares, seed=WEIGHT_SEED, stopping_strategy="all_exhausted"
    )


def is_file(name: str) -> bool:
    """Whether an entry means a file, also one that does not exist, rather than a data set."""
    return os.path.isfile(name) or os.path.splitext(name)[1] in FILE_FORMATS


def _load_file(path: str) -> Dataset:
    options = _file_options(path)
    if not path.endswith(".parquet"):
        _check_lines(path, os.path.splitext(path)[1])
    try:
        return load_dataset(**options, split="train")
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise ValueError(f"{path} must hold one JSON object per line, got: {error.__cause__}; repair it.") from error


def _file_options(path: str) -> dict[str, Any]:
    """Arguments of `load_dataset` for a file."""
    if not os.path.isfile(path):
        raise ValueError(
            f"`train_data` and `validation_data` must name existing files, got {path!r}, which does not exist."
        )
    extension = os.path.splitext(path)[1]
    if extension not in FILE_FORMATS:
        raise ValueError(f"Data files must end in {', '.join(FILE_FORMATS)}, got {path!r}; convert it to JSON lines.")
    options = {"sample_by": "document"} if _is_plain(path) else {}
    # `datasets` reads names as patterns.
    return {"path": FILE_FORMATS[extension], "data_files": glob.escape(path), **options}


def _check_lines(path: str, extension: str) -> None:
    """Refuse a file without a word, and one with a line `null`: Arrow crashes where a block begins with it."""
    is_empty = True
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip().removeprefix(codecs.BOM_UTF8) == b"null" and extension != ".txt":
                raise ValueError(f"{path} must hold one JSON object per line, got null in line {number}; repair it.")
            is_empty = is_empty and not line.strip()
            if not is_empty and extension != ".jsonl":
                break  # text, or perhaps one JSON value on many lines
    if is_empty:
        raise ValueError(f"{path} must hold at least one document, got an empty file; name another one.")


def _load_named(source: str, split: str, config_name: Optional[str]) -> Dataset:
    documents = load_from_disk(source) if _is_saved(source) else _load_dataset(source, config_name)
    if isinstance(documents, dict):
        if split not in documents:
            raise ValueError(f"{source} must have the split {split!r}, got {', '.join(documents)}; name one of these.")
        documents = documents[split]
    return documents


def _is_saved(folder: str) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("dataset_dict.json", "state.json"))


def _load_dataset(source: str, config_name: Optional[str]) -> Any:
    try:
        return load_dataset(source, config_name)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise ValueError(
            f"{source} must hold files of one kind with the same columns, got: {error.__cause__ or error}; name the "
            "files one by one."
        ) from error


def only_text(documents: Dataset, text_column: str, source: str) -> Dataset:
    """The column of the texts, as `text`.

    Raises:
        ValueError: if there is none, or a value is missing or no text.
    """
    if text_column not in documents.column_names:
        raise ValueError(
            f"`text_column` must be a column of {source} ({', '.join(documents.column_names)}), got {text_column!r}."
        )
    documents = documents.select_columns([text_column]).rename_columns({text_column: "text"})
    kind = documents.features["text"].dtype
    if kind not in ("string", "large_string"):
        raise ValueError(
            f"`text_column` must hold text, got {kind} in column {text_column!r} of {source}; name another column."
        )
    return _filled(documents, source)


def _filled(rows: Dataset, source: str) -> Dataset:
    """`rows`, if no value of them is missing."""
    table = rows.with_format("arrow")[:]
    for column in rows.column_names:
        index = table[column].is_null().index(True).as_py()
        if index >= 0:
            raise ValueError(f"Every row must have a `{column}`, got none in row {index} of {source}; add it.")
    return rows


def _is_plain(path: str) -> bool:
    return os.path.splitext(path)[1] == ".txt"
