"""What the training commands share: options in, a run started or resumed, a model folder and a loss curve out."""

import difflib
import importlib.util
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any, Optional

import torch
import yaml
from transformers import TrainerCallback, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import TrlParser

from llada_core import loading
from llada_core.lazy import install_line
from llada_core.tokenization import missing_tokens, prepare_tokenizer, save_tokenizer, special_tokens

from .adapters import AdapterOptions, merge_adapter
from .checkpoints import checkpoint_to_resume, last_checkpoint
from .plots import plot_loss_curve
from .progress import LogTable, counted
from .sft_data import has_conversations

LOSS_CURVE = "loss_curve.png"
ADAPTER_FOLDER = "adapter"
# Packages of the names in `report_to`, one of which is enough; the extra `track` installs the first two names'.
TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "comet_ml": ("comet_ml",),
    "clearml": ("clearml",),
    "swanlab": ("swanlab",),
}
TRACK = ("tensorboard", "trackio")


def parse_options(args: list[str], classes: list[Any], command: str, description: str) -> tuple[Any, ...]:
    """Read options from the command line and from the file after `--config`; the command line wins.

    Args:
        args: command line without the command's name.
        classes: dataclasses whose fields are the options.
        command: the command's name, e.g. `llada train sft`.
        description: what `--help` says first.

    Returns:
        An object of each class.

    Raises:
        ValueError: for an unknown option, naming the nearest known one, for values out of range, and for a file that
            is not a mapping in YAML.
    """
    if "--config" in args:
        _check_recipe(*args[args.index("--config") + 1 :][:1])
    usage = f"{command} [--config RECIPE.yaml] [--option value ...]"
    parser = _Parser(classes, usage=usage, description=description, allow_abbrev=False)
    *configs, unknown = parser.parse_args_and_config(args, return_remaining_strings=True)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        nearest = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1, cutoff=0.0)[0]
        raise ValueError(f"Unknown option {unknown[0]!r}; did you mean {nearest!r}? `--help-all` lists all options.")
    return tuple(configs)


def parse_with_adapter(
    args: list[str], config_class: Any, command: str, description: str, further: tuple[Any, ...] = ()
) -> tuple[Any, ...]:
    """Read the options of a training that starts from a model, and those of its adapter.

    Args:
        args, command, description: as in `parse_options`.
        config_class: class of the options.
        further: classes of further options.

    Returns:
        The options, those of the adapter, and the further ones.

    Raises:
        ValueError: as `parse_options`, without a model, and for publishing an adapter.
    """
    config, adapter, *others = parse_options(args, [config_class, AdapterOptions, *further], command, description)
    if config.model is None:
        raise ValueError("`model` must name a LLaDA checkpoint (folder or Hub id), got None; pass --model.")
    if adapter.use_peft and config.push_to_hub:
        raise ValueError(
            "`push_to_hub` must be False with `use_peft`, since adapter and model are two folders, got True; "
            "publish one with `llada push`."
        )
    return config, adapter, *others


def run_training(
    config: Any, build_trainer: Callable[[], Any], title: str, adapter: Optional[AdapterOptions] = None
) -> str:
    """Train from the start or from a checkpoint, and write the result and its loss curve.

    Args:
        config: the run's options.
        build_trainer: makes the trainer. It runs after the random seed is set and the checkpoint is found.
        title: title of the loss curve.
        adapter: options of the adapter. With `use_peft` the result is an adapter, and with `merge_adapter` a model too.

    Returns:
        The folder that holds the result.

    Raises:
        ValueError: if there is nothing to resume, or if checkpoints of another run would be mixed with this one's.
        ImportError: as `check_packages`.
    """
    set_seed(config.seed)
    checkpoint = checkpoint_to_resume(config.resume_from_checkpoint, config.output_dir)
    found = last_checkpoint(config.output_dir)
    if checkpoint is None and found is not None and not getattr(config, "overwrite_output_dir", False):
        raise ValueError(
            f"`output_dir` must not hold checkpoints of an earlier run, got {found}; pass "
            "--resume_from_checkpoint true to continue it, or another --output_dir."
        )
    check_packages(config, adapter)
    silence_libraries()
    trainer = build_trainer()
    trainer.add_callback(_LogLastStep())
    table = LogTable()
    table.attach(trainer)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        table.close()
    trainer.save_state()
    if adapter is not None and adapter.use_peft:
        save_adapter(trainer, adapter.merge_adapter)
    else:
        save_model(trainer)
    if trainer.is_world_process_zero():
        curve = plot_loss_curve(trainer.state.log_history, os.path.join(config.output_dir, LOSS_CURVE), title)
        trainer.create_model_card()
        print(f"Model, tokenizer and training log: {config.output_dir}\nLoss curve: {curve}")
    return config.output_dir


def check_packages(config: Any, adapter: Optional[AdapterOptions] = None) -> None:
    """Notice what the run will need and is not installed, before the model is loaded.

    Raises:
        ImportError: if a package is missing.
        ValueError: if `report_to` names what transformers does not know.
    """
    for name in config.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ValueError(f"`report_to` must be none, all or of {known}, got {name!r}.")
        packages = TRACKERS.get(name, ())
        if packages and not any(map(importlib.util.find_spec, packages)):
            line = install_line("track") if name in TRACK else f"pip install {name}"
            raise ImportError(f"`report_to` {name} needs the package `{packages[0]}`; install it with: {line}")
    is_deepspeed = config.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"
    uses = {
        "matplotlib": ("The loss curve", "train", True),
        "peft": ("`use_peft`", "train", adapter is not None and adapter.use_peft),
        "bitsandbytes": ("`load_in_4bit`", "quantization", adapter is not None and adapter.load_in_4bit),
        "deepspeed": ("ZeRO", "deepspeed", is_deepspeed),
    }
    for package, (user, extra, is_used) in uses.items():
        if is_used and importlib.util.find_spec(package) is None:
            raise ImportError(f"{user} needs the package `{package}`; install it with: {install_line(extra)}")


def silence_libraries() -> None:
    """Keep off the screen what libraries remark on ways in which they are driven here."""
    # Otherwise DeepSpeed, which accelerate imports where it is installed, warns that it found no accelerator.
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # `Trainer` tells which ids it takes from the tokenizer; a tokenizer that does not fit is refused before.
    for module in ("transformers.trainer", "transformers.trainer_utils"):
        logging.getLogger(module).addFilter(lambda record: "PAD/BOS/EOS" not in record.getMessage())
    # PEFT asks for it by its old name.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def save_model(trainer: Any) -> None:
    """Write the final model folder (code, weights, config, tokenizer, generation config) in `save_dtype`."""
    if trainer.args.save_dtype is not None:
        trainer.accelerator.unwrap_model(trainer.model).to(getattr(torch, trainer.args.save_dtype))
    trainer.save_model()


def save_adapter(trainer: Any, merge: bool) -> None:
    """Write the adapter into its sub-folder of the run, and, if asked, the whole model into the run's folder."""
    config = trainer.args
    folder = os.path.join(config.output_dir, ADAPTER_FOLDER)
    trainer.save_model(folder)
    if not trainer.is_world_process_zero():
        return
    print(f"LoRA adapter: {folder}")
    if merge:
        # The merged model is loaded by this process alone, and ZeRO-3 would share it out.
        unset_hf_deepspeed_config()
        merge_adapter(config.model, folder, config.output_dir, config.save_dtype)
        save_tokenizer(trainer.processing_class, config.output_dir)


def load_tokenizer(config: Any) -> Any:
    """Load the tokenizer named by `tokenizer`, else the one beside `model`; its own chat template stays.

    Raises:
        ValueError: if neither is given.
    """
    source = config.tokenizer or config.model
    if source is None:
        raise ValueError("`tokenizer` must name a folder or Hub id when `model` does not, got None; train one first.")
    tokenizer: Any = loading.load_tokenizer(source, prepare=False)
    kind = special_tokens(tokenizer)
    needed = [token for token in (kind.mask, kind.bos, kind.eos) if token is not None]
    if tokenizer.mask_token_id is None and not missing_tokens(tokenizer, needed):
        # The released tokenizers hold LLaDA's tokens but declare no mask.
        tokenizer = prepare_tokenizer(tokenizer, missing="spell_out")
    return tokenizer


def with_chat_template(tokenizer: Any, data: dict[str, Any]) -> Any:
    """Give a tokenizer without a chat template LLaDA's, if any split holds conversations."""
    if tokenizer.chat_template or not any(has_conversations(rows) for rows in data.values()):
        return tokenizer
    print("The tokenizer has no chat template; LLaDA's is used and saved.")
    return prepare_tokenizer(tokenizer, missing="spell_out")


def load_policy(config: Any, adapter: AdapterOptions, tokenizer: Any) -> Any:
    """Load the model that a run goes on with; the commands have refused a run without `model`.

    Raises:
        ValueError: for a tokenizer that does not fit it.
    """
    options = {"attn_implementation": config.attn_implementation, **adapter.loading_options()}
    model = loading.load_model(str(config.model), dtype=adapter.dtype, **options)
    loading.check_tokenizer(tokenizer, model.config)
    return model


class _Parser(TrlParser):
    """TRL's parser, with a recipe's options under all names that the command line knows."""

    def set_defaults_with_config(self, **options: Any) -> list[str]:
        # Flags that take no value are --help and the opposites of others.
        actions = [action for action in self._actions if action.nargs != 0]
        names = {flag.lstrip("-"): action.dest for action in actions for flag in action.option_strings}
        return super().set_defaults_with_config(**{names.get(name, name): value for name, value in options.items()})


def _check_recipe(path: str = "") -> None:
    if not os.path.isfile(path):
        raise ValueError(f"`--config` must name a YAML file, got {path!r}, which does not exist.")
    try:
        with open(path, encoding="utf-8") as file:
            options = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"`--config` must name a YAML file, got {path!r}, which is not one: {error}.") from error
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise ValueError(f"`--config` must name a YAML file with a mapping of options, got {path!r}, which holds none.")


def load_data(
    config: Any, load: Callable[[list[str], str], Any], stream: Optional[Callable[[list[str], str], Any]] = None
) -> dict[str, Any]:
    """The data sets for `train` and, if given, `validation`, by `load(sources, split)`; one process prepares them.

    With `streaming`, those for `train` come from `stream(sources, split)`.
    """
    sources = {"train": (config.train_data or [], config.train_split)}
    if config.validation_data:
        sources["validation"] = (config.validation_data, config.validation_split)
    with config.main_process_first(desc="data preparation"):
        return {
            name: stream(*source) if stream is not None and config.streaming and name == "train" else load(*source)
            for name, source in sources.items()
        }


def report_start(config: Any, model: Any, data: dict[str, Any], unit: str, longest: int) -> None:
    """Print how large model and data are: data sets by name, counted in `unit` (singular), and their longest row."""
    if config.process_index:
        return
    parts = ", ".join(
        f"{counted(len(rows), unit) if hasattr(rows, '__len__') else f'a stream of {unit}s'} for {name}"
        for name, rows in data.items()
    )
    num_parameters, num_trained = model.num_parameters(), model.num_parameters(only_trainable=True)
    share = "" if num_trained == num_parameters else f", of which {num_trained / 1e6:.2f} M are trained"
    print(f"Model of {num_parameters / 1e6:.1f} M parameters{share}; {parts}, of at most {longest} tokens.")


class _LogLastStep(TrainerCallback):
    """Logs at the last step too, so that a run shorter than `logging_steps` has a loss curve."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step >= state.max_steps:
            control.should_log = True
        return control
