"""Put a trained tiny LLaDA into its folder: weights, code, tokenizer, training log, loss curve and model card.

    python examples/llada_tiny/write_card.py --run runs/llada-tiny --data runs/llada-tiny-data \
        --output checkpoints/llada-tiny

`--run` names the output folder of `llada train`, or one of the checkpoints in it; several for a training in stages, in
their order, of which the last is saved. `--data` is the folder of `prepare_data.py`. The card's numbers come from
these, its samples and its evaluation from the weights as they are saved; nothing is picked by hand. After a last stage
of `llada train sft` the model is also asked the questions of `prepare_instructions.py`, as `ask.py` does.
"""

import argparse
import datetime
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import ask
import torch
import transformers
from prepare_instructions import QUESTIONS, STATISTICS, read_jsonl
from stages import Stage, commands, describe_stages, joined_history, options_shown, write_log
from transformers import PreTrainedTokenizerFast

from llada_core.card import new_card
from llada_core.records import processor_name
from llada_core.tokenization import EOT_TOKEN, prepare_tokenizer, save_tokenizer
from llada_training import (
    LLaDAPretrainingConfig,
    LLaDAPretrainingTrainer,
    load_documents,
    pack_documents,
    plot_loss_curve,
)
from modeling_llada import LLaDAModelLM

LOG, CURVE, NOTICE = "training_log.jsonl", "loss_curve.png", "NOTICE.md"
MAX_BYTES = 16 * 2**20
# Prompt and answer together stay within the 128 tokens of the training sequences.
MAX_NEW_TOKENS = 64

SEED = 0
DRAW = {"temperature": 0.8, "top_p": 0.9}
MASK_GLYPH = "□"
COMPLETIONS = (
    "In the beginning God created",
    "The lord is my",
    "And he said to them,",
    "The capital of France is",
    "The opposite of hot is",
    "A baby cat is called",
    "A: How are you today?\nB:",
)
DEFINITIONS = (
    "What is a river?",
    "What is a bicycle?",
    "What is music?",
    "What does it mean to sing?",
    'What does "quickly" mean?',
    "courage (noun):",
)
INFILLS = (  # one glyph for each masked token, its leading space included
    "The capital of□ is Rome.",
    "A group of□ is called a flock.",
    "The king□□□ the people.",
    "□□□□□□ is a kind of bird.",
    "A: What do you like to do?\nB: I like to□□□□□□□□.",
)

SOURCES = {
    "wordnet": "WordNet 3.0: definitions and examples, put into sentences",
    "bible": "World English Bible, altered as NOTICE.md says",
    "chitchat": "chitchat-dataset: a filtered and tidied selection",
    "quiz": "answer files of the game quiz (bsdgames), put into sentences",
}
TEXT_LIMITS = (
    "It is a demonstration and a test object. It writes simple English of the kind it was trained on, repeats itself "
    "in longer answers, and is mostly wrong.",
    "It was not trained to follow instructions or to hold a conversation, though its tokenizer has a chat template.",
)
ANSWER_LIMITS = (
    "It is a demonstration and a test object: it recalls facts it was trained on, as often as counted above. What it "
    "was not trained on it does not know, and it does not know that it does not: it then answers in the same tone, and "
    "is wrong.",
    "The facts of the questions stand in the text of the pre-training too, in both directions. So a question in the "
    "direction that fine-tuning left out does not ask for something the model never saw.",
    "It answers one question in a sentence. It does not follow other instructions, and it remembers little of a "
    "conversation.",
)
LIMITS = (
    "It saw sequences of at most 128 tokens; `max_sequence_length` in its config is 512.",
    "English only. Its text is a dictionary, a Bible translation, small talk and quiz facts, with the views and gaps "
    "of these; some quiz facts are out of date.",
    "Coarse words were filtered out of its text by a word list; its answers are not filtered.",
)
ASKED = (
    "What is the capital of France?",
    "what is the capital of japan",
    "Which country has Lisbon as its capital?",
    "What is the largest planet in the solar system?",
    "What is the longest river in the world?",
    "Who was the 16th President of the United States?",
    "What is the chemical symbol for iron?",
    "What do you call a baby cat?",
    "What is the opposite of hot?",
    "What is a bicycle?",
    "What is 7 plus 5?",
    "Who are you?",
    "Hello!",
    "Who wrote Hamlet?",  # not in its training
    "Why is the sky blue?",  # nor this
)
ANSWERS_METHOD = (
    "The questions are those of `prepare_instructions.py`, each a conversation of its own, answered greedily with the "
    "defaults of this folder by `ask.py`; an answer is right if it holds the expected words. "
)


def main() -> None:
    """Save the model, measure it, let it write, and fill in the card."""
    options = parse_arguments()
    stages = [Stage.read(run) for run in options.run]
    model, tokenizer = load(options.run[-1])
    options.output.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, options.output)
    history = joined_history(stages)
    write_log(history, options.output / LOG)
    plot_loss_curve(history, options.output / CURVE, "Loss")
    shutil.copy(options.data / NOTICE, options.output / NOTICE)
    new_card(**card_variables(options, model, tokenizer, stages)).save(options.output / "README.md")
    check_folder(options.output)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="folder of each stage of the training")
    parser.add_argument("--data", type=Path, required=True, help="folder of the training text")
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    parser.add_argument("--machine", default=machine(), help="what it was trained on, in words; this machine if unset")
    return parser.parse_args()


def load(run: Path) -> tuple[Any, Any]:
    """Load what the run saved, in bfloat16, with the tokenizer prepared."""
    model = LLaDAModelLM.from_pretrained(run, dtype=torch.bfloat16).eval()
    return model, prepare_tokenizer(PreTrainedTokenizerFast.from_pretrained(run))


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder that loads with and without this package."""
    eot_token_id = tokenizer.convert_tokens_to_ids(EOT_TOKEN)
    model.generation_config = model.generation_config.updated(max_new_tokens=MAX_NEW_TOKENS, eot_token_id=eot_token_id)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    # safetensors writes for the owner only; an installed package is read by everybody.
    for path in folder.iterdir():
        path.chmod(0o644)


def card_variables(options: argparse.Namespace, model: Any, tokenizer: Any, stages: list[Stage]) -> dict[str, Any]:
    """Gather what `new_card` asks for; the template's head gives the meaning of each."""
    statistics = json.loads((options.data / "statistics.json").read_text(encoding="utf-8"))
    hours = sum(stage.hours for stage in stages)
    return {
        "model_name": "llada-tiny",
        "model_id": options.output.as_posix(),
        "summary": summary(model),
        "license": "apache-2.0",
        "languages": ["en"],
        "prompt": COMPLETIONS[0],
        "infill_prompt": INFILLS[0].replace(MASK_GLYPH, "MASK"),
        "chat_question": ASKED[0] if stages[-1].has_answers else None,
        "training_data": describe_data(statistics) + describe_instructions(options.data) + describe_stages(stages),
        "training_commands": commands(stages),
        "training_arguments": options_shown(stages),
        "training_steps": sum(stage.num_steps for stage in stages),
        "training_tokens": sum(stage.num_tokens for stage in stages),
        "compute": f"{options.machine}. {hours:.1f} hours in training steps; {stages[-1].date}.",
        "loss_curve": CURVE,
        "training_log": LOG,
        "evaluation": evaluate(model, tokenizer, options.data / "validation.jsonl", stages[0].args)
        + (count_answers(options.output, options.data / QUESTIONS) if stages[-1].has_answers else []),
        "evaluation_method": f"The bfloat16 weights of this folder on {statistics['validation']['all']['documents']:,} "
        "held-out documents, by `LLaDAPretrainingTrainer.evaluate`: every sequence is masked once, its share of "
        f"masked tokens spread evenly over (0, 1]. {ANSWERS_METHOD if stages[-1].has_answers else ''}{machine()}, "
        f"{datetime.date.today()}.",
        "samples": (write_answers(model, tokenizer) if stages[-1].has_answers else [])
        + write_samples(model, tokenizer),
        "samples_method": f"Written by `examples/llada_tiny/write_card.py` with the prompts listed there; nothing was "
        f"picked. Greedy with the defaults of this folder, up to {MAX_NEW_TOKENS} new tokens, unless stated. "
        f"`{MASK_GLYPH}` stands for one masked token.",
        "limits": (ANSWER_LIMITS if stages[-1].has_answers else TEXT_LIMITS) + LIMITS,
        "notices": f"The text it was trained on has notices that must travel with it: see [{NOTICE}]({NOTICE}). "
        '"World English Bible" is a trademark of eBible.org.',
    }


def summary(model: Any) -> str:
    """Say what the model is."""
    config = model.config
    return (
        f"A LLaDA (masked diffusion language model, arXiv:2502.09992) of {model.num_parameters() / 1e6:.1f} million "
        f"parameters: {config.n_layers} layers, width {config.d_model}, {config.n_heads} heads, tied embeddings and "
        f"a byte-level vocabulary of {config.vocab_size}. It was trained from scratch and comes with the `llada-hf` "
        "package, as the model its commands use by default and its tests run on."
    )


def describe_data(statistics: dict) -> str:
    """Tabulate the sources with their sizes."""
    corpus = statistics["corpus"]
    rows = ["| source | documents | characters | tokens |", "|---|---|---|---|"]
    for name in [*SOURCES, "all"]:
        sizes = " | ".join(f"{corpus[name][column]:,}" for column in ("documents", "characters", "tokens"))
        rows.append(f"| {SOURCES.get(name, 'all')} | {sizes} |")
    held_out = statistics["validation"]["all"]
    after = (
        f"Beside it, {held_out['documents']:,} documents ({held_out['tokens']:,} tokens) are held out. The text was "
        "made by `examples/llada_tiny/prepare_data.py` from freely licensed packages "
        f"({', '.join(f'`{name}`' for name in statistics['packages'])}); the SHA-256 of corpus.jsonl is "
        f"`{statistics['corpus_sha256']}`."
    )
    return "\n".join(rows) + "\n\n" + after


def describe_instructions(folder: Path) -> str:
    """Say what the questions and answers are, if `prepare_instructions.py` made any in this folder."""
    if not (folder / STATISTICS).exists():
        return ""
    statistics = json.loads((folder / STATISTICS).read_text(encoding="utf-8"))
    items = statistics["items"]
    counts = ", ".join(f"{kind} {count:,}" for kind, count in sorted(items.items(), key=lambda pair: -pair[1]))
    return (
        f"\n\nFor the answers, {statistics['conversations']:,} conversations ({statistics['tokens']:,} tokens) made by "
        "`examples/llada_tiny/prepare_instructions.py` from the same packages: WordNet's definitions, the quiz, "
        "small talk, and sums; the SHA-256 of instructions.jsonl is "
        f"`{statistics['instructions_sha256']}`. They teach {sum(items.values()):,} items: {counts}. "
        "Most are asked for in both directions; of one fact in ten the second direction, and one sum in ten, are left "
        "out for the evaluation."
    )


def count_answers(folder: Path, path: Path) -> list[tuple[str, str]]:
    """Ask the questions of a file and tabulate the right answers, by split and by kind."""
    questions = read_jsonl(path)
    report = ask.summarize(questions, ask.ask(*ask.load(folder), [question["question"] for question in questions]))
    rows = [
        (f"questions answered right: {ask.SPLITS[split]}", f"{part['right']:.1%} of {part['count']:,}")
        for split, part in report["splits"].items()
    ]
    stops = sum(part["stops"] * part["count"] for part in report["splits"].values()) / len(questions)
    rows.append(("answers that end, rather than fill the canvas", f"{stops:.1%} of {len(questions):,}"))
    for kind, splits in sorted(report["kinds"].items()):
        names = " / ".join(split for split in ask.SPLITS if split in splits)
        shares = " / ".join(f"{splits[split]['right']:.0%}" for split in ask.SPLITS if split in splits)
        rows.append((f"{kind}: {names}", shares))
    return rows


def evaluate(model: Any, tokenizer: Any, path: Path, args: LLaDAPretrainingConfig) -> list[tuple[str, str]]:
    """Measure the loss on held-out text."""
    documents = load_documents([str(path)])
    vocab_size, mask_token_id = model.config.embedding_size, model.config.mask_token_id
    packed = pack_documents(documents, tokenizer, args.sequence_length, vocab_size, mask_token_id)
    with tempfile.TemporaryDirectory() as scratch:
        here = LLaDAPretrainingConfig(
            output_dir=scratch, per_device_eval_batch_size=64, report_to="none", disable_tqdm=True
        )
        metrics = LLaDAPretrainingTrainer(model, here, eval_dataset=packed, processing_class=tokenizer).evaluate()
    loss = metrics["eval_loss"]
    rows = [
        ("loss, an upper bound of -log p (nats per token)", f"{loss:.3f}"),
        ("perplexity, as an upper bound", f"{math.exp(loss):.1f}"),
        ("masked tokens guessed right, over all shares of masked tokens", f"{metrics['eval_masked_accuracy']:.1%}"),
    ]
    lower = 0.0
    for upper in (0.25, 0.5, 0.75, 1.0):
        name = f"cross-entropy of a masked token, {lower:.0%} to {upper:.0%} of the tokens masked (nats)"
        rows.append((name, f"{metrics[f'eval_loss_t_{upper:.2f}']:.3f}"))
        lower = upper
    return rows


def write_answers(model: Any, tokenizer: Any) -> list[tuple[str, list[tuple[str, str]]]]:
    """Let the model answer the questions above, each a conversation of its own."""
    answers = ask.ask(model, tokenizer, list(ASKED))
    return [("Answers", [(question, answer["text"]) for question, answer in zip(ASKED, answers, strict=True)])]


def write_samples(model: Any, tokenizer: Any) -> list[tuple[str, list[tuple[str, str]]]]:
    """Let the model answer every prompt above."""
    drawn = ", ".join(f"{name}={value}" for name, value in DRAW.items())
    return [
        ("Completions", [(prompt, complete(model, tokenizer, prompt)) for prompt in COMPLETIONS]),
        ("Definitions", [(prompt, complete(model, tokenizer, prompt)) for prompt in DEFINITIONS]),
        ("Infilling", [(prompt, infill(model, tokenizer, prompt)) for prompt in INFILLS]),
        (
            f"Completions, drawn with {drawn}, seed {SEED}",
            [(prompt, complete(model, tokenizer, prompt, **DRAW)) for prompt in COMPLETIONS],
        ),
    ]


def complete(model: Any, tokenizer: Any, prompt: str, **options: Any) -> str:
    """Continue a prompt; the answer alone."""
    encoded = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**encoded, generator=torch.Generator().manual_seed(SEED), **options)
    return tokenizer.decode(ids[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def infill(model: Any, tokenizer: Any, prompt: str) -> str:
    """Fill in the glyphs of a prompt; the whole text."""
    encoded = tokenizer(prompt.replace(MASK_GLYPH, tokenizer.mask_token), return_tensors="pt")
    return tokenizer.decode(model.infill(**encoded)[0], skip_special_tokens=True)


def machine() -> str:
    """Name this machine's processor and the versions in use."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{os.cpu_count()} cores of {processor_name()}, {versions}"


def check_folder(folder: Path) -> None:
    """Report the folder's size, and refuse one that is too large for the package."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 2**20:.2f} MiB in {sum(1 for _ in folder.iterdir())} files")
    if size > MAX_BYTES:
        raise SystemExit(f"{folder} must be at most {MAX_BYTES / 2**20:.0f} MiB to travel with the package.")


if __name__ == "__main__":
    main()
