"""Reads the data of fine-tuning: JSON lines, texts or a data set, in one of the formats the trainer takes."""

from typing import Optional

from datasets import Dataset, concatenate_datasets

from .data import read_sources

# Columns of each format, the most telling first; the first one that is there counts, other columns are left out.
FORMATS = (
    ("messages",),
    ("conversations",),
    ("prompt", "completion"),
    ("input_ids", "labels"),
    ("input_ids",),
    ("text",),
)


def load_examples(sources: list[str], split: str = "train", config_name: Optional[str] = None) -> Dataset:
    """Read examples of one format: conversations, prompts with completions, texts, or token ids.

    Args:
        sources: files, each `.jsonl` (one example per line) or `.txt` (one text per file); or one entry: a folder of
            `Dataset.save_to_disk`, or the name or folder of a `datasets` data set.
        split: split of a named data set.
        config_name: configuration of a named data set.

    Returns:
        A data set with the columns of one of `FORMATS`.

    Raises:
        ValueError: if a file is missing or of another kind, no format fits, formats are mixed, or a value is missing.
    """
    parts, chosen = [], {}
    for source, rows in read_sources(sources, split, config_name):
        columns = _format_of(rows, source)
        chosen[columns] = source
        parts.append(_only(rows, columns, source))
    if len(chosen) > 1:
        found = "; ".join(f"{', '.join(columns)} in {source}" for columns, source in chosen.items())
        raise ValueError(f"All files must have the same columns, got {found}; bring them into one form.")
    return concatenate_datasets(parts)


def _format_of(rows: Dataset, source: str) -> tuple[str, ...]:
    for columns in FORMATS:
        if set(columns) <= set(rows.column_names):
            return columns
    raise ValueError(
        f"Examples must have the column `messages`, or `prompt` and `completion`, or `text`, got "
        f"{', '.join(rows.column_names)} in {source}; rename its columns."
    )


def _only(rows: Dataset, columns: tuple[str, ...], source: str) -> Dataset:
    rows = rows.select_columns(list(columns))
    for column in columns:
        for index, is_there in enumerate(rows.with_format("arrow")[:][column].is_valid().to_pylist()):
            if not is_there:
                raise ValueError(f"Every example must have a `{column}`, got none in row {index} of {source}; add it.")
    return rows
