"""What the card says of the stages of a training: options, steps, hours, commands, log."""

import datetime
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from llada_training import LLaDAPretrainingConfig, LLaDASFTConfig

ROOT = Path(__file__).resolve().parents[2]
OPTIONS_SHOWN = (
    "sequence_length", "max_length", "random_length_probability", "exact_count", "low_discrepancy",
    "loss_normalization", "eos_fill", "turns", "per_device_train_batch_size", "gradient_accumulation_steps",
    "num_train_epochs", "optim", "learning_rate", "lr_scheduler_type", "warmup_steps", "decay_steps", "decay_type",
    "min_lr_ratio", "adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm", "bf16", "attn_implementation", "seed",
    "save_dtype",
)  # fmt: skip
# The script that makes a file of training data.
SCRIPTS = {
    "corpus.jsonl": "prepare_data.py --output runs/llada-tiny-data",
    "plain.jsonl": "select_plain.py --data runs/llada-tiny-data",
    "instructions.jsonl": "prepare_instructions.py --data runs/llada-tiny-data",
    "mixed.jsonl": "mix_text.py --data runs/llada-tiny-data",
}


@dataclass
class Stage:
    """One run of `llada train pretrain` or `llada train sft`.

    Attributes:
        args: its options.
        history: its log.
        num_steps: optimizer steps done.
        date: day of its end.
    """

    args: LLaDAPretrainingConfig | LLaDASFTConfig
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
    def has_answers(self) -> bool:
        """Whether it was trained on answers, rather than on running text."""
        return isinstance(self.args, LLaDASFTConfig)

    @property
    def num_tokens(self) -> int:
        """Tokens that could be masked, all steps together."""
        if isinstance(self.args, LLaDAPretrainingConfig):
            return self.num_steps * self.step_tokens
        rows = [row for row in self.history if "masked_tokens" in row]
        return round(sum(row["masked_tokens"] / row["masked_fraction"] for row in rows))

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimizer step of pre-training."""
        args = self.args
        return args.train_batch_size * args.gradient_accumulation_steps * args.world_size * args.sequence_length

    @property
    def hours(self) -> float:
        """Time of the training steps.

        Of pre-training by the logged speed, which also holds for a run that was resumed; of fine-tuning, whose rows
        differ in length, what the trainer measured.
        """
        if self.has_answers:
            return sum(row.get("train_runtime", 0.0) for row in self.history) / 3600
        seconds, last_step = 0.0, 0
        for row in self.history:
            if "tokens_per_second" in row:
                seconds += (row["step"] - last_step) * self.step_tokens / row["tokens_per_second"]
                last_step = row["step"]
        return seconds / 3600

    @property
    def command(self) -> str:
        """The command line: the recipe that names this output folder, and the options that differ from it."""
        command = f"llada train {'sft' if self.has_answers else 'pretrain'}"
        for path in sorted((ROOT / "recipes").glob("*.yaml")):
            recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
            if recipe.get("output_dir") == self.args.output_dir:
                given = {name: plain(getattr(self.args, name)) for name in OPTIONS_SHOWN if name in recipe}
                changed = [f" --{name} {value}" for name, value in given.items() if value != recipe[name]]
                return f"{command} --config recipes/{path.name}" + "".join(changed)
        return f"{command} --output_dir {self.args.output_dir}"

    @property
    def files(self) -> Counter:
        """Names of its data files, with how often each is listed."""
        return Counter(Path(source).name for source in self.args.train_data or [])


def describe_stages(stages: list[Stage]) -> str:
    """Say what each stage read, if there are several."""
    if len(stages) == 1:
        return ""
    lines = ["", "", "The training has stages:", ""]
    for number, stage in enumerate(stages, start=1):
        read = ", ".join(f"{name}{f' {copies} times' if copies > 1 else ''}" for name, copies in stage.files.items())
        lines.append(f"{number}. {read}: {stage.num_steps:,} steps")
    if any("plain.jsonl" in stage.files for stage in stages):
        lines += ["", "plain.jsonl is what `select_plain.py` takes of corpus.jsonl: text in common words, quiz facts."]
    return "\n".join(lines)


def commands(stages: list[Stage]) -> list[str]:
    """The commands that made the model: before each stage the scripts for the files it is the first to read."""
    lines, made = [], set()
    for stage in stages:
        for name in stage.files:
            if name in SCRIPTS and name not in made:
                lines.append(f"python examples/llada_tiny/{SCRIPTS[name]}")
                made.add(name)
        lines.append(stage.command)
    return lines


def options_shown(stages: list[Stage]) -> dict[str, str]:
    """Each option's value, or its values in the order of the stages that have it."""
    shown = {}
    for name in OPTIONS_SHOWN:
        values = [str(plain(getattr(stage.args, name))) for stage in stages if hasattr(stage.args, name)]
        if values:
            shown[name] = values[0] if len(set(values)) == 1 else ", then ".join(values)
    return shown


def plain(value: Any) -> Any:
    """Show an enumeration by its value."""
    return getattr(value, "value", value)


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
