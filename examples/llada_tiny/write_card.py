"""Put a trained tiny LLaDA into its folder: weights, code, tokenizer, training log, loss curve and model card.

    python examples/llada_tiny/write_card.py --run runs/llada-tiny --data runs/llada-tiny-data \
        --output checkpoints/llada-tiny

`--run` names the output folder of `llada train pretrain`, or one of the checkpoints in it; several for a training in
stages, in their order, of which the last is saved. `--data` is the folder of `prepare_data.py`. The card's numbers come
from these, its samples and its evaluation from the weights as they are saved; nothing is picked by hand.
"""

import argparse
import datetime
import json
import math
import os
import platform
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from transformers import PreTrainedTokenizerFast

from llada_training import (
    LLaDAPretrainingConfig,
    LLaDAPretrainingTrainer,
    load_documents,
    pack_documents,
    plot_loss_curve,
)
from modeling_llada import LLaDAModelLM
from modeling_llada.tokenization_llada import EOT_TOKEN, prepare_tokenizer, save_tokenizer

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "model_card.md"
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

OPTIONS_SHOWN = (
    "sequence_length", "random_length_probability", "exact_count", "low_discrepancy", "per_device_train_batch_size",
    "gradient_accumulation_steps", "num_train_epochs", "optim", "learning_rate", "lr_scheduler_type", "warmup_steps",
    "decay_steps", "decay_type", "min_lr_ratio", "adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm", "bf16",
    "attn_implementation", "seed", "save_dtype",
)  # fmt: skip
SOURCES = {
    "wordnet": "WordNet 3.0: definitions and examples, put into sentences",
    "bible": "World English Bible, altered as NOTICE.md says",
    "chitchat": "chitchat-dataset: a filtered and tidied selection",
    "quiz": "answer files of the game quiz (bsdgames), put into sentences",
}
LIMITS = (
    "It is a demonstration and a test object. It writes simple English of the kind it was trained on, repeats itself "
    "in longer answers, and is mostly wrong: of 128 quiz facts that its text holds, `benchmarks/steps_quality.py` "
    "found about 4 % answered right.",
    "It was not trained to follow instructions or to hold a conversation, though its tokenizer has a chat template.",
    "It saw sequences of at most 128 tokens; `max_sequence_length` in its config is 512.",
    "English only. Its text is a dictionary, a Bible translation, small talk and quiz facts, with the views and gaps "
    "of these; some quiz facts are out of date.",
    "Coarse words were filtered out of its text by a word list; its answers are not filtered.",
)


@dataclass
class Stage:
    """One run of `llada train pretrain`.

    Attributes:
        args: its options.
        history: its log.
        num_steps: optimizer steps done.
        date: day of its end.
    """

    args: LLaDAPretrainingConfig
    history: list[dict]
    num_steps: int
    date: datetime.date

    @classmethod
    def read(cls, run: Path) -> "Stage":
        """Read what the trainer wrote into a run's folder."""
        path = run / "trainer_state.json"
        state = json.loads(path.read_text(encoding="utf-8"))
        date = datetime.date.fromtimestamp(path.stat().st_mtime)
        # Our own file, written by the trainer.
        args = torch.load(run / "training_args.bin", weights_only=False)
        return cls(args, state["log_history"], state["global_step"], date)

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimizer step."""
        args = self.args
        return args.train_batch_size * args.gradient_accumulation_steps * args.world_size * args.sequence_length

    @property
    def hours(self) -> float:
        """Time of the training steps by the logged speed, which also holds for a run that was resumed."""
        seconds, last_step = 0.0, 0
        for row in self.history:
            if "tokens_per_second" in row:
                seconds += (row["step"] - last_step) * self.step_tokens / row["tokens_per_second"]
                last_step = row["step"]
        return seconds / 3600

    @property
    def command(self) -> str:
        """The command line: the recipe that names this output folder, and the options that differ from it."""
        for path in sorted((ROOT / "recipes").glob("*.yaml")):
            recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
            if recipe.get("output_dir") == self.args.output_dir:
                given = {name: plain(getattr(self.args, name)) for name in OPTIONS_SHOWN if name in recipe}
                changed = [f" --{name} {value}" for name, value in given.items() if value != recipe[name]]
                return f"llada train pretrain --config recipes/{path.name}" + "".join(changed)
        return f"llada train pretrain --output_dir {self.args.output_dir}"


def main() -> None:
    """Save the model, measure it, let it write, and fill in the card."""
    options = parse_arguments()
    stages = [Stage.read(run) for run in options.run]
    model, tokenizer = load(options.run[-1])
    options.output.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, options.output)
    history = joined_history(stages)
    write_log(history, options.output / LOG)
    plot_loss_curve(history, options.output / CURVE, "Pre-training loss")
    shutil.copy(options.data / NOTICE, options.output / NOTICE)
    card = render_card(card_variables(options, model, tokenizer, stages))
    (options.output / "README.md").write_text(card, encoding="utf-8")
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


def joined_history(stages: list[Stage]) -> list[dict]:
    """Put the logs one after the other, steps counted through."""
    history, first_step = [], 0
    for number, stage in enumerate(stages, start=1):
        history += [{"stage": number, **row, "step": first_step + row["step"]} for row in stage.history]
        first_step += stage.num_steps
    return history


def write_log(history: list[dict], path: Path) -> None:
    """Write the log one entry a line, numbers to six digits."""
    lines = [{name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in row.items()} for row in history]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def card_variables(options: argparse.Namespace, model: Any, tokenizer: Any, stages: list[Stage]) -> dict[str, Any]:
    """Gather what the template asks for; see its head for the meaning of each."""
    statistics = json.loads((options.data / "statistics.json").read_text(encoding="utf-8"))
    hours = sum(stage.hours for stage in stages)
    return {
        "model_name": "llada-tiny",
        "model_id": options.output.as_posix(),
        "summary": summary(model),
        "license": "apache-2.0",
        "languages": ["en"],
        "base_model": None,
        "datasets": [],
        "tags": [],
        "prompt": COMPLETIONS[0],
        "infill_prompt": INFILLS[0].replace(MASK_GLYPH, "MASK"),
        "chat_question": None,
        "training_data": describe_data(statistics) + describe_stages(stages),
        "training_commands": commands(stages),
        "training_arguments": {name: values_of(name, stages) for name in OPTIONS_SHOWN},
        "training_steps": sum(stage.num_steps for stage in stages),
        "training_tokens": sum(stage.num_steps * stage.step_tokens for stage in stages),
        "compute": f"{options.machine}. {hours:.1f} hours in training steps; {stages[-1].date}.",
        "loss_curve": CURVE,
        "training_log": LOG,
        "evaluation": evaluate(model, tokenizer, options.data / "validation.jsonl", stages[-1].args),
        "evaluation_method": f"The bfloat16 weights of this folder on {statistics['validation']['all']['documents']:,} "
        "held-out documents, by `LLaDAPretrainingTrainer.evaluate`: every sequence is masked once, its share of "
        f"masked tokens spread evenly over (0, 1]. {machine()}, {datetime.date.today()}.",
        "samples": write_samples(model, tokenizer),
        "samples_method": f"Written by `examples/llada_tiny/write_card.py` with the prompts listed there; nothing was "
        f"picked. Greedy with the defaults of this folder, up to {MAX_NEW_TOKENS} new tokens, unless stated. "
        f"`{MASK_GLYPH}` stands for one masked token.",
        "limits": LIMITS,
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


def describe_stages(stages: list[Stage]) -> str:
    """Say what each stage read, if there are several."""
    if len(stages) == 1:
        return ""
    lines = ["", "", "The training has stages:", ""]
    for number, stage in enumerate(stages, start=1):
        files = Counter(Path(source).name for source in stage.args.train_data or [])
        read = ", ".join(f"{name}{f' {copies} times' if copies > 1 else ''}" for name, copies in files.items())
        lines.append(f"{number}. {read}: {stage.num_steps:,} steps")
    if reads_plain(stages):
        lines += ["", "plain.jsonl is what `select_plain.py` takes of corpus.jsonl: text in common words, quiz facts."]
    return "\n".join(lines)


def reads_plain(stages: list[Stage]) -> bool:
    """Whether any stage reads the selection of `select_plain.py`."""
    return any(Path(source).name == "plain.jsonl" for stage in stages for source in stage.args.train_data or [])


def commands(stages: list[Stage]) -> list[str]:
    """The commands that made the model."""
    lines = ["python examples/llada_tiny/prepare_data.py --output runs/llada-tiny-data"]
    if reads_plain(stages):
        lines.append("python examples/llada_tiny/select_plain.py --data runs/llada-tiny-data")
    return lines + [stage.command for stage in stages]


def values_of(name: str, stages: list[Stage]) -> str:
    """An option's value, or its values in the order of the stages."""
    values = [str(plain(getattr(stage.args, name))) for stage in stages]
    return values[0] if len(set(values)) == 1 else ", then ".join(values)


def plain(value: Any) -> Any:
    """Show an enumeration by its value."""
    return getattr(value, "value", value)


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


def render_card(variables: dict[str, Any]) -> str:
    """Fill the template; a variable that is missing raises, and so does a head that is no YAML mapping."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    card = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(variables)
    ModelCard(card)
    return card


def machine() -> str:
    """Name this machine's processor and the versions in use."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), cpu)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{os.cpu_count()} cores of {cpu}, {versions}"


def check_folder(folder: Path) -> None:
    """Report the folder's size, and refuse one that is too large for the package."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 2**20:.2f} MiB in {sum(1 for _ in folder.iterdir())} files")
    if size > MAX_BYTES:
        raise SystemExit(f"{folder} must be at most {MAX_BYTES / 2**20:.0f} MiB to travel with the package.")


if __name__ == "__main__":
    main()
