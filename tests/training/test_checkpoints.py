"""Laws of checkpoints: whatever cuts a save off, the last good one is found, loads, and the run goes on unchanged."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from llada_training.checkpoints import checkpoint_to_resume, is_complete, last_checkpoint
from modeling_llada import LLaDAModelLM

SAVING = {"save_strategy": "steps", "save_steps": 2}
KILLED_RUN = Path(__file__).with_name("killed_run.py")


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture
def uninterrupted(make_trainer, tmp_path):
    trainer = make_trainer(output_dir=str(tmp_path / "uninterrupted"))
    trainer.train()
    return trainer


@pytest.fixture
def make_folder(tmp_path):
    """Make a checkpoint's folder with this text as the trainer's state, or without any."""

    def make(step, state="{}"):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
        return str(folder)

    return make


def assert_goes_on_from_checkpoint_2(trainer, uninterrupted):
    """Checkpoint 4 was cut off; resumed, `trainer` ends where `uninterrupted` does, and replaces it."""
    folder = trainer.args.output_dir
    assert get_last_checkpoint(folder) == os.path.join(folder, "checkpoint-4")
    assert last_checkpoint(folder) == os.path.join(folder, "checkpoint-2")
    LLaDAModelLM.from_pretrained(last_checkpoint(folder))
    trainer.train(resume_from_checkpoint=True)
    assert losses(trainer) == losses(uninterrupted)
    for ours, theirs in zip(trainer.model.parameters(), uninterrupted.model.parameters()):
        assert torch.equal(ours, theirs)
    assert last_checkpoint(folder) == os.path.join(folder, "checkpoint-4")


class DiskFillsUp(TrainerCallback):
    """After the first save a write beyond so many bytes fails, as on a full disk."""

    def __init__(self, num_bytes):
        self.num_bytes = num_bytes

    def on_save(self, args, state, control, **options):
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.num_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def restored_limit():
    given = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, given)
    resource.setrlimit(resource.RLIMIT_FSIZE, given)


# The toy's weights take 210 kB, AdamW's state twice as much.
@pytest.mark.parametrize("num_bytes", [100_000, 300_000], ids=["weights", "optimizer"])
@pytest.mark.parametrize("save_total_limit", [None, 1])
def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_so(
    make_trainer, uninterrupted, tmp_path, restored_limit, num_bytes, save_total_limit
):
    options = SAVING | {"output_dir": str(tmp_path / "run"), "save_total_limit": save_total_limit}
    trainer = make_trainer(**options)
    trainer.add_callback(DiskFillsUp(num_bytes))
    message = r"checkpoint-4 could not be saved \(.+\); the last complete checkpoint is .*checkpoint-2\. Make room"
    with pytest.raises(OSError, match=message):
        trainer.train()
    restored_limit()
    assert_goes_on_from_checkpoint_2(make_trainer(**options), uninterrupted)


def test_a_full_disk_at_the_end_says_what_is_not_saved(make_trainer, tmp_path, restored_limit):
    trainer = make_trainer()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    with pytest.raises(
        OSError, match=r"^.*/whole could not be saved \(.+\); the last complete checkpoint is None\. Make"
    ):
        trainer.save_model(str(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_kill_during_a_save_leaves_the_last_good_checkpoint(
    make_trainer, make_model, sequences, uninterrupted, tmp_path, moment
):
    folder = str(tmp_path / "run")
    make_model().save_pretrained(tmp_path / "model")
    sequences.save_to_disk(tmp_path / "sequences")
    options = make_trainer(**SAVING, output_dir=folder).args.to_dict()
    (tmp_path / "options.json").write_text(json.dumps(options))
    run = subprocess.run([sys.executable, str(KILLED_RUN), str(tmp_path), moment], capture_output=True, text=True)
    assert run.returncode == -9, run.stderr[-3000:]
    assert_goes_on_from_checkpoint_2(make_trainer(**SAVING, output_dir=folder), uninterrupted)


def test_a_checkpoint_is_complete_once_its_state_can_be_read(make_folder):
    assert is_complete(make_folder(1, '{"global_step": 1}'))
    assert not is_complete(make_folder(2, '{"global_step": '))
    assert not is_complete(make_folder(3, ""))
    assert not is_complete(make_folder(4, None))


def test_the_last_checkpoint_is_the_complete_one_of_most_steps(make_folder, tmp_path):
    assert last_checkpoint(str(tmp_path / "absent")) is None
    assert last_checkpoint(str(tmp_path)) is None
    for step in (9, 10, 100):
        make_folder(step, None if step == 100 else "{}")
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-10")


def test_a_wish_to_resume_is_a_folder_true_or_nothing(make_folder, tmp_path):
    folder = make_folder(3)
    assert [checkpoint_to_resume(wish, str(tmp_path)) for wish in (None, False, "false")] == [None] * 3
    assert [checkpoint_to_resume(wish, str(tmp_path)) for wish in (True, "true", folder)] == [folder] * 3


@pytest.mark.parametrize("wish", [True, "absent"])
def test_a_checkpoint_that_is_not_there_is_refused(make_folder, tmp_path, wish):
    make_folder(3, None)
    with pytest.raises(ValueError, match=f"`resume_from_checkpoint` must be .*, got {wish}, but there is none"):
        checkpoint_to_resume(wish, str(tmp_path))


def test_a_checkpoint_that_was_cut_off_is_refused_and_the_last_good_one_named(make_folder, tmp_path):
    make_folder(2)
    with pytest.raises(ValueError, match=r"must name a complete checkpoint, got .*-3, which was cut off .* is .*-2\."):
        checkpoint_to_resume(make_folder(3, None), str(tmp_path))
