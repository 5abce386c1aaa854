"""The path of a training step is short: few files and functions of ours between a batch and its logged loss."""

import sys
from collections import Counter
from pathlib import Path

from transformers import TrainerCallback

import llada_core
import llada_training
import modeling_llada

FOLDERS = {package.__name__: str(Path(package.__file__).resolve().parent) for package in
           (llada_core, llada_training, modeling_llada)}  # fmt: skip


class StepTracer(TrainerCallback):
    """Counts the calls of our functions from the first batch of an epoch to its first log line, by (file, function)."""

    def __init__(self):
        self.calls = Counter()

    def count(self, frame, event, _):
        code = frame.f_code
        # Comprehensions and lambdas are part of the function that holds them.
        if event == "call" and not code.co_name.startswith("<"):
            path = str(Path(code.co_filename).resolve())
            for package, folder in FOLDERS.items():
                if path.startswith(folder + "/"):
                    self.calls[package, path, code.co_name, code.co_firstlineno] += 1

    def on_epoch_begin(self, *args, **options):
        sys.setprofile(self.count)

    def on_log(self, *args, **options):
        sys.setprofile(None)


def trace(trainer):
    tracer = StepTracer()
    trainer.add_callback(tracer)
    before = sys.getprofile()
    try:
        trainer.train()
    finally:
        sys.setprofile(before)
    return tracer.calls


def test_a_fine_tuning_step_passes_few_files_and_functions(make_sft_trainer):
    calls = trace(make_sft_trainer(max_steps=1))
    ours = {(path, *name) for package, path, *name in calls if package != "modeling_llada"}
    assert len({path for path, *_ in ours}) <= 7, sorted(ours)
    assert len(ours) <= 38, sorted(ours)
    everything = {(path, *name) for _, path, *name in calls}
    assert len({path for path, *_ in everything}) <= 9, sorted(everything)
    assert len(everything) <= 45, sorted(everything)


def test_the_rows_of_a_step_are_settled_masked_and_laid_out_once(make_sft_trainer, chats):
    """Also when packed: no function of ours between collator and forward runs twice for one batch."""
    calls = trace(make_sft_trainer(max_steps=1, train_dataset=chats, packing=True, eos_fill=0, turns="all"))
    counts = {name: number for (_, _, name, _), number in calls.items()}
    for name in ("lengths_with_eos", "set_lengths", "draw_noise", "pack_rows", "score_masked"):
        assert counts[name] == 1, name
    assert "padding_mask" not in counts
