"""Recorded runs: every frame is the canvas of that pass, and recording changes nothing."""

import math

import pytest
import torch

from llada_core.conversation import cut_at_stop
from llada_core.loading import Checkpoint, load_checkpoint
from llada_core.recorder import Recorder, token_texts
from llada_core.tokenization import encode_chat


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def prompt(checkpoint) -> torch.Tensor:
    return torch.tensor(
        [encode_chat(checkpoint.tokenizer, [{"role": "user", "content": "What is the capital of France?"}])]
    )


OPTIONS: list[dict] = [
    {},
    {"temperature": 0.8, "generator": 3},
    {"threshold": 0.9},
    {"remask_rate": 0.3},
    {"block_length": 4, "cache": "dual"},
    {"cfg_scale": 1.0},
]


def run(checkpoint, ids, recorder=None, infill=False, **options):
    if "generator" in options:
        options["generator"] = torch.Generator().manual_seed(options["generator"])
    if recorder is not None:
        options |= {"streamer": recorder, "logits_processor": [recorder]}
    call = checkpoint.model.infill if infill else checkpoint.model.generate
    return call(ids, return_dict_in_generate=True, output_history=True, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("infill", [False, True])
def test_frames_are_the_history_and_the_run_is_the_one_that_is_not_recorded(checkpoint, prompt, options, infill):
    if infill:
        prompt = checkpoint.tokenizer(
            "The capital of<|mdm_mask|> is<|mdm_mask|><|mdm_mask|>", return_tensors="pt"
        ).input_ids
    else:
        options = {**options, "max_new_tokens": 12, "stop_at_eos": False}
    recorder = Recorder(checkpoint.tokenizer)
    recorded, plain = (run(checkpoint, prompt, each, infill, **options) for each in (recorder, None))
    assert recorded.sequences.tolist() == plain.sequences.tolist()
    start = 0 if infill else prompt.shape[1]
    assert [list(frame.ids) for frame in recorder.frames] == [ids[0, start:].tolist() for ids in plain.history]


@pytest.mark.parametrize("infill", [False, True])
def test_a_recorder_that_is_the_streamer_only_keeps_the_same_frames_without_confidences(checkpoint, prompt, infill):
    options: dict = {} if infill else {"max_new_tokens": 12, "block_length": 4, "stop_at_eos": False}
    ids = checkpoint.tokenizer("The <|mdm_mask|><|mdm_mask|>", return_tensors="pt").input_ids if infill else prompt
    both, alone = Recorder(checkpoint.tokenizer), Recorder(checkpoint.tokenizer)
    run(checkpoint, ids, both, infill, **options)
    (checkpoint.model.infill if infill else checkpoint.model.generate)(ids, streamer=alone, **options)
    assert [(frame.ids, frame.passes) for frame in alone.frames] == [(frame.ids, frame.passes) for frame in both.frames]
    assert all(math.isnan(confidence) for frame in alone.frames for confidence in frame.confidences)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_token_bears_the_pass_that_committed_it_and_its_probability_then(checkpoint, prompt, options):
    recorder = Recorder(checkpoint.tokenizer)
    run(checkpoint, prompt, recorder, max_new_tokens=12, stop_at_eos=False, **options)
    mask = checkpoint.tokenizer.mask_token_id
    for number, frame in enumerate(recorder.frames):
        before = recorder.frames[max(0, number - 1)]
        for column, token in enumerate(frame.ids):
            is_new = token != before.ids[column]
            expected = 0 if token == mask else number if is_new else before.passes[column]
            assert frame.passes[column] == expected
            assert math.isnan(frame.confidences[column]) == (token == mask)
            assert token == mask or 0 < frame.confidences[column] <= 1
    assert recorder.frames[-1].num_committed == 12
    assert [frame.seconds for frame in recorder.frames] == sorted(frame.seconds for frame in recorder.frames)


def test_the_probability_of_the_first_token_is_that_of_the_model(checkpoint, prompt):
    recorder = Recorder(checkpoint.tokenizer)
    run(checkpoint, prompt, recorder, max_new_tokens=8, block_length=8, steps=8)
    ids = torch.cat((prompt, torch.full((1, 8), checkpoint.tokenizer.mask_token_id)), 1)
    best = checkpoint.model(ids).logits[0, -8:].softmax(-1).max(-1)
    frame, column = recorder.frames[1], int(best.values.argmax())
    assert (frame.ids[column], frame.passes[column]) == (int(best.indices[column]), 1)
    assert frame.confidences[column] == pytest.approx(best.values[column].item(), abs=1e-5)


def test_what_was_given_bears_no_pass(checkpoint):
    ids = checkpoint.tokenizer("The capital of<|mdm_mask|> is Rome.", return_tensors="pt").input_ids
    recorder = Recorder(checkpoint.tokenizer)
    run(checkpoint, ids, recorder, infill=True)
    is_gap = (ids[0] == checkpoint.tokenizer.mask_token_id).tolist()
    assert [number > 0 for number in recorder.frames[-1].passes] == is_gap
    assert "".join(token_texts(recorder.frames[-1].ids, checkpoint.tokenizer)) == "The capital of Italy is Rome."


def test_the_last_frame_is_the_answer_up_to_its_end(checkpoint, prompt):
    recorder = Recorder(checkpoint.tokenizer, checkpoint.stop_ids)
    output = run(checkpoint, prompt, recorder, max_new_tokens=32)
    answer = output.sequences[0, prompt.shape[1] :].tolist()
    stop = cut_at_stop(answer, checkpoint.stop_ids, checkpoint.tokenizer.mask_token_id)
    assert list(recorder.frames[-1].ids) == stop
    assert len(recorder.frames) == 1 + int(output.num_forward_passes)


def test_an_answer_that_ends_at_a_stop_string_is_recorded_up_to_it(checkpoint, prompt):
    recorder = Recorder(checkpoint.tokenizer, checkpoint.stop_ids)
    options = {"stop_strings": "capital", "tokenizer": checkpoint.tokenizer, "max_new_tokens": 32}
    output = run(checkpoint, prompt, recorder, **options)
    assert list(recorder.frames[-1].ids) == output.sequences[0, prompt.shape[1] :].tolist()


def test_of_a_canvas_that_grows_the_frames_end_with_the_block(checkpoint, prompt):
    recorder = Recorder(checkpoint.tokenizer, block_length=8)
    run(
        checkpoint,
        prompt,
        recorder,
        max_new_tokens=None,
        block_length=8,
        max_length=prompt.shape[1] + 24,
        stop_at_eos=False,
    )
    assert sorted({len(frame.ids) for frame in recorder.frames}) == [8, 16, 24]


def test_everything_is_handed_on_to_the_other_streamer(checkpoint, prompt):
    class Log:
        def __init__(self):
            self.calls = []

        def put(self, value):
            self.calls.append(("put", value.tolist()))

        def put_draft(self, value):
            self.calls.append(("put_draft", value.tolist()))

        def end(self):
            self.calls.append(("end", None))

    through, alone = Log(), Log()
    recorder = Recorder(checkpoint.tokenizer, streamer=through)
    run(checkpoint, prompt, recorder, max_new_tokens=8)
    checkpoint.model.generate(prompt, streamer=alone, max_new_tokens=8)
    assert through.calls == alone.calls


def test_what_is_raised_after_a_pass_ends_the_run(checkpoint, prompt):
    def stop():
        raise InterruptedError

    recorder = Recorder(checkpoint.tokenizer, on_frame=stop)
    with pytest.raises(InterruptedError):
        run(checkpoint, prompt, recorder, max_new_tokens=8)
    assert len(recorder.frames) == 2


def test_several_rows_are_refused(checkpoint, prompt):
    with pytest.raises(ValueError, match="`Recorder` keeps one row, got 2"):
        run(checkpoint, prompt.repeat(2, 1), Recorder(checkpoint.tokenizer), max_new_tokens=8)


def test_the_texts_of_tokens_join_to_the_text_and_characters_of_several_tokens_are_whole(checkpoint):
    tokenizer = checkpoint.tokenizer
    text = "naïve 日本 🙂 hello\nworld"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(ids, tokenizer)
    assert len(texts) == len(ids) and "".join(texts) == text
    assert {piece for piece in texts if piece in "ï日本🙂" and piece} >= {"ï", "本", "🙂"}


def test_masks_and_special_tokens_have_no_text_and_split_characters_show(checkpoint):
    tokenizer = checkpoint.tokenizer
    first, second = tokenizer("ï", add_special_tokens=False)["input_ids"]
    ids = [first, tokenizer.mask_token_id, second, tokenizer.eos_token_id]
    assert token_texts(ids, tokenizer) == ["\N{REPLACEMENT CHARACTER}", "", "\N{REPLACEMENT CHARACTER}", ""]
    assert token_texts(tokenizer("a\x1bb", add_special_tokens=False)["input_ids"], tokenizer)[1] != "\x1b"
