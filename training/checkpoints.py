"""Checkpoints that survive a kill or a full disk, and a final model that is whole however it was trained."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional, Union

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

_FOLDER = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


class _NotSaved(OSError):
    """A folder that could not be written, and where to go on."""


class ResumableTrainer(Trainer):
    """A trainer whose checkpoints are complete or recognisably not, also with several processes.

    The trainer's state is the last file of a checkpoint, written after every process has written its part: a folder
    without a readable one was cut off. Such a folder is never resumed from; saving the same step again replaces it.

    List it before `Trainer`, or a trainer of TRL, in the bases. For one process, DDP, FSDP and DeepSpeed ZeRO.
    Not handled: loss of power (files are not forced to the disk), folders that the processes do not share.
    """

    # Narrower than `Trainer` declares them.
    args: Any
    model: Any
    model_wrapped: Any

    def train(self, resume_from_checkpoint: Optional[Union[bool, str]] = None, *args: Any, **options: Any) -> Any:
        """Train, as `Trainer.train`; `resume_from_checkpoint=True` continues from the last complete checkpoint.

        Raises:
            ValueError: if there is no such checkpoint, or the one named is not complete.
        """
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        # A bug of transformers' `Trainer`: `evaluate()` prepares the model without wrapping it, `train()` takes it for
        # wrapped, and the processes of DDP drift apart. So the preparation is forgotten.
        if self.args.world_size > 1:
            self.accelerator._models.clear()
            self.model.__dict__.pop("_is_accelerate_prepared", None)
            self.model_wrapped = self.model
        vars(self.model.config).pop("is_untrained", None)  # the mark of a conversion
        return super().train(checkpoint, *args, **options)

    def save_model(self, output_dir: Optional[str] = None, _internal_call: bool = False) -> None:
        """Save the whole model for `from_pretrained`, as `Trainer.save_model`; all processes must call it.

        Checkpoints of FSDP keep its shards if it is so configured. Everything else is gathered: `Trainer` would
        write no weights at all.

        Raises:
            ValueError: if a weight is infinite or not a number; nothing is written then.
            OSError: if the disk is full.
        """
        self._check_weights()
        with self._naming_what_is_not_saved(output_dir or self.args.output_dir, self.args.output_dir):
            self._save_whole_model(output_dir, _internal_call)

    def _save_whole_model(self, output_dir: Optional[str], _internal_call: bool) -> None:
        save = super().save_model
        if not self.is_fsdp_enabled or (_internal_call and output_dir is not None):
            save(output_dir, _internal_call)
            return
        plugin = self.accelerator.state.fsdp_plugin
        configured = plugin.state_dict_type
        plugin.set_state_dict_type("FULL_STATE_DICT")
        try:
            save(output_dir, _internal_call)
        finally:
            plugin.set_state_dict_type(configured)

    def way_back(self) -> str:
        """What messages say of a training that has diverged: where it stands, and how to do better."""
        checkpoint = last_checkpoint(self.args.output_dir)
        # Not resume: the schedule of a resumed run is the saved one.
        place = f", with the last complete checkpoint, {checkpoint}, as `model`" if checkpoint else ""
        return (
            f"step {self.state.global_step}; the training has diverged, so start another run with a lower "
            f"`learning_rate` than {self.args.learning_rate}{place}."
        )

    def _check_weights(self) -> None:
        """Refuse weights that are not finite, in whichever process they lie."""
        names = non_finite_weights(self.model)
        num_found = torch.tensor(len(names), device=self.accelerator.device)
        if self.accelerator.reduce(num_found, reduction="sum").item():
            place = f"`{names[0]}`" if names else "the shard of another process"
            raise ValueError(f"Saved weights must be finite, got inf or nan in {place} at {self.way_back()}")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run_folder = self._get_output_dir(trial=trial)
        checkpoint = os.path.join(run_folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save:
            # First, so that a kill in here leaves nothing that looks complete.
            Path(checkpoint, TRAINER_STATE_NAME).unlink(missing_ok=True)
            if os.path.isdir(checkpoint):
                shutil.rmtree(checkpoint)
        self.accelerator.wait_for_everyone()
        with self._naming_what_is_not_saved(checkpoint, run_folder):
            super()._save_checkpoint(model, trial)

    @contextlib.contextmanager
    def _naming_what_is_not_saved(self, folder: str, run_folder: str) -> Iterator[None]:
        try:
            yield
        except _NotSaved:
            raise  # said already, of the checkpoint's model
        except (OSError, RuntimeError, SafetensorError) as error:
            raise _NotSaved(
                f"{folder} could not be saved ({error}); the last complete checkpoint is "
                f"{last_checkpoint(run_folder)}. Make room, then resume with `resume_from_checkpoint=True`."
            ) from error

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The last file that every process writes. Next the main process writes the state and deletes old checkpoints.
        self.accelerator.wait_for_everyone()


def non_finite_weights(model: nn.Module) -> list[str]:
    """Names of the trained parameters with an infinite value or one that is not a number; shards of this process."""
    names = []
    for name, parameter in model.named_parameters():
        shard = getattr(parameter, "ds_tensor", parameter).detach()  # ZeRO-3 empties the parameter itself
        shard = shard.to_local() if hasattr(shard, "to_local") else shard  # FSDP2
        # The extremes carry a NaN on, and need no second tensor as large as the parameter.
        if parameter.requires_grad and shard.numel() and not torch.stack(shard.aminmax()).isfinite().all():
            names.append(name)
    return names


def last_checkpoint(output_dir: str) -> Optional[str]:
    """The complete checkpoint of most steps in `output_dir`, or None."""
    names = os.listdir(output_dir) if os.path.isdir(output_dir) else []
    steps = {name: int(match[1]) for name in names if (match := _FOLDER.fullmatch(name))}
    latest_first = (os.path.join(output_dir, name) for name in sorted(steps, key=steps.__getitem__, reverse=True))
    return next(filter(is_complete, latest_first), None)


def is_complete(checkpoint: str) -> bool:
    """Whether the folder `checkpoint` was written to its end."""
    try:
        json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def checkpoint_to_resume(wish: Optional[Union[bool, str]], output_dir: str) -> Optional[str]:
    """The checkpoint that `resume_from_checkpoint` asks for.

    Args:
        wish: true (as a bool or in words) for the last complete checkpoint of `output_dir`; a checkpoint's folder;
            None or false to start afresh.
        output_dir: the run's folder; it need not exist.

    Returns:
        A complete checkpoint, or None to start afresh.

    Raises:
        ValueError: if there is no such checkpoint, or the one named is not complete.
    """
    if wish is None or str(wish).lower() == "false":
        return None
    is_last = str(wish).lower() == "true"
    checkpoint = last_checkpoint(output_dir) if is_last else str(wish)
    if checkpoint is None or not os.path.isdir(checkpoint):
        raise ValueError(
            f"`resume_from_checkpoint` must be true or the folder of a checkpoint, got {wish}, but there is none "
            f"complete in {output_dir if is_last else checkpoint}; leave it out to start afresh."
        )
    if not is_complete(checkpoint):
        raise ValueError(
            f"`resume_from_checkpoint` must name a complete checkpoint, got {checkpoint}, which was cut off while it "
            f"was saved; the last complete one in {output_dir} is {last_checkpoint(output_dir)}."
        )
    return checkpoint
