"""Animations: everything of the run is drawn, where and when it belongs, in a small file that stands alone."""

import re
from xml.etree import ElementTree

import pytest
import torch

from llada_core.animation import (
    CONFIDENCE_COLOURS,
    LINE,
    PASS_COLOURS,
    colour,
    lay_out,
    num_columns,
    tint,
    wrap,
    write_animation,
)
from llada_core.loading import Checkpoint, load_checkpoint
from llada_core.recorder import Frame, Recorder, token_texts
from llada_core.tokenization import encode_chat
from tests.helpers import REFERENCE

QUESTION = "What is the largest planet in the solar system?"


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def frames(checkpoint) -> list[Frame]:
    return record(checkpoint, max_new_tokens=32, threshold=0.9)


def record(checkpoint, **options) -> list[Frame]:
    recorder = Recorder(checkpoint.tokenizer, checkpoint.stop_ids)
    ids = torch.tensor([encode_chat(checkpoint.tokenizer, [{"role": "user", "content": QUESTION}])])
    checkpoint.model.generate(ids, streamer=recorder, logits_processor=[recorder], **options)
    return recorder.frames


def frames_of(*rows: list[int]) -> list[Frame]:
    """Frames in which a token bears the number of the frame where it appeared."""
    frames: list[Frame] = []
    for number, ids in enumerate(rows):
        old = frames[-1] if frames else None
        passes = [old.passes[c] if old and old.ids[c] == token else number for c, token in enumerate(ids)]
        frames.append(Frame(tuple(ids), tuple(passes), (0.5,) * len(ids), number))
    return frames


def test_a_cell_stands_there_from_the_pass_that_wrote_it_to_the_next_change(checkpoint, frames):
    mask = checkpoint.tokenizer.mask_token_id
    cells = lay_out(frames, checkpoint.tokenizer)
    for number, frame in enumerate(frames):
        now = [cell for cell in cells if cell.first <= number and (cell.last is None or number < cell.last)]
        assert len(now) == len(frame.ids)
        assert [cell.text is None for cell in now] == [token == mask for token in frame.ids]
    final = [cell.text for cell in cells if cell.last is None]
    assert final == [text.strip() for text in token_texts(frames[-1].ids, checkpoint.tokenizer)]


def test_a_token_that_was_masked_again_is_drawn_each_time_it_stood_there(checkpoint):
    mask = checkpoint.tokenizer.mask_token_id
    cat, dog = (checkpoint.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" a", " the"))
    cells = lay_out(frames_of([mask], [cat], [mask], [dog]), checkpoint.tokenizer)
    assert [(cell.text, cell.first, cell.last) for cell in cells] == [
        (None, 0, 1), ("a", 1, 2), (None, 2, 3), ("the", 3, None),
    ]  # fmt: skip


def test_words_are_whole_newlines_begin_lines_and_no_cell_overlaps_another(checkpoint):
    tokenizer = checkpoint.tokenizer
    text = "The capital of France is Paris.\n  And " + "the largest planet in the solar system is Jupiter; " * 3
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    cells = lay_out(frames_of([tokenizer.mask_token_id] * len(ids), ids), tokenizer)
    lines: dict[int, str] = {}
    for cell in cells:
        if cell.text is not None:
            assert cell.column >= len(lines.get(cell.line, ""))
            lines[cell.line] = lines.get(cell.line, "").ljust(cell.column) + cell.text
    assert lines[0] == "The capital of France is Paris." and lines[1].startswith("  And the largest")
    assert max(map(len, lines.values())) <= LINE
    assert " ".join(" ".join(lines.values()).split()) == " ".join(text.split())


def test_the_svg_is_small_stands_alone_and_is_well_formed(checkpoint, frames, tmp_path):
    write_animation(tmp_path / "a.svg", frames, checkpoint.tokenizer, 'What is <b> & "c"?')
    source = (tmp_path / "a.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(source)
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert 'What is <b> & "c"?' in texts and "Jupiter" in "".join(texts)
    assert f"12 tokens in {len(frames) - 1} passes" in texts
    assert len(source) < 100_000
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|<script|url\((?!#)", source)
    assert "prefers-color-scheme:dark" in source and "prefers-reduced-motion" in source


def test_every_animated_class_of_the_svg_is_defined(checkpoint, frames, tmp_path):
    write_animation(tmp_path / "a.svg", frames, checkpoint.tokenizer, by="confidence")
    source = (tmp_path / "a.svg").read_text(encoding="utf-8")
    used = set(re.findall(r'class="(?:small )?(s\d+-\d*)"', source))
    assert used == set(re.findall(r"@keyframes (s\d+-\d*)", source)) == set(re.findall(r"\.(s\d+-\d*)\{", source))


def test_a_long_run_stays_below_a_megabyte(tmp_path):
    checkpoint = load_checkpoint(REFERENCE / "checkpoints" / "mha", device="cpu")
    frames = record(checkpoint, max_new_tokens=256, stop_at_eos=False, logits_eos_inf=True)
    for name in ("a.svg", "a.gif"):
        if name == "a.gif":
            pytest.importorskip("PIL")
        write_animation(tmp_path / name, frames, checkpoint.tokenizer, QUESTION)
        assert (tmp_path / name).stat().st_size < 2**20


def test_the_gif_has_a_picture_for_every_pass_and_repeats(checkpoint, frames, tmp_path):
    image = pytest.importorskip("PIL.Image")
    write_animation(tmp_path / "a.gif", frames, checkpoint.tokenizer, QUESTION)
    with image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.info["loop"]) == (len(frames), 0)


def test_control_characters_do_not_break_the_svg(checkpoint, tmp_path):
    tokenizer = checkpoint.tokenizer
    ids = tokenizer("a\x00\x1b</svg>", add_special_tokens=False)["input_ids"]
    write_animation(tmp_path / "a.svg", frames_of([tokenizer.mask_token_id] * len(ids), ids), tokenizer, "\x07<x>")
    ElementTree.parse(tmp_path / "a.svg")


def test_colours_go_from_the_first_to_the_last():
    assert [colour(t) for t in (0, 0.5, 1, 2)] == [*PASS_COLOURS, PASS_COLOURS[2]]
    assert [colour(t, "confidence") for t in (0, 0.5, 1)] == list(CONFIDENCE_COLOURS)
    assert [tint(number, 0.3, 5, "pass") for number in (0, 1, 3, 5)] == [None, 0, 0.5, 1]
    assert [tint(number, 0.3, 5, "confidence") for number in (0, 1)] == [None, 0.3]
    assert tint(1, float("nan"), 5, "confidence") == 0.5 and tint(1, 0.3, 1, "pass") == 0


def test_prompts_are_wrapped_and_wide_characters_count_twice():
    assert wrap("") == [] and wrap("one\n\ntwo") == ["one", "", "two"]
    assert num_columns("a日本") == 5
    for text in ("word " * 40, "x" * 200, "日" * 100):
        assert all(num_columns(line) <= LINE for line in wrap(text))
        assert "".join(wrap(text)).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("a.png", ValueError, "`--animate` must name a file that ends in .svg or .gif, got `.*a.png`"),
        ("nowhere/a.svg", FileNotFoundError, "There is no folder `.*nowhere` for `--animate`"),
        ("folder.svg", IsADirectoryError, "`--animate` must name a file, but `.*folder.svg` is a folder"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused(checkpoint, frames, tmp_path, name, error, message):
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(error, match=message):
        write_animation(tmp_path / name, frames, checkpoint.tokenizer)


def test_a_gif_without_pillow_says_what_to_install(checkpoint, frames, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(
        ImportError,
        match=r"A GIF needs the package `PIL`; install it with: pip install \"\.\[demo\]\" in",
    ):
        write_animation(tmp_path / "a.gif", frames, checkpoint.tokenizer)
