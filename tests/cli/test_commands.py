"""The `llada` command: what it prints, where, and how it says what went wrong."""

import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from llada_cli.chat import hold_conversation
from llada_cli.display import CanvasStreamer, canvas_text
from llada_cli.main import app
from llada_cli.screen import choose_console
from llada_cli.turns import read_prompts
from llada_core.conversation import Conversation, cut_at_stop
from llada_core.loading import load_checkpoint
from llada_core.tokenization import encode_chat

FOLDER = Path(__file__).parents[1] / "reference" / "checkpoints" / "mha"
SHARDED = FOLDER.with_name("mha_sharded")
MODEL = ["--model", str(FOLDER)]
SHORT = [*MODEL, "-n", "8", "--no-stop-at-eos"]
COMMAND = [sys.executable, "-m", "llada_cli"]
MASK, EOS, EOT = 488, 481, 491


def run(*arguments: str, stdin: str | None = None):
    return CliRunner().invoke(app, list(arguments), input=stdin, env={"COLUMNS": "200"})


def answers_of(*arguments: str, stdin: str | None = None) -> list[dict]:
    result = run("generate", *arguments, "--json", stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def assert_fails(result, message: str) -> None:
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("Error: "), result.stderr
    assert message in lines[-1]
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(str(FOLDER), device="cpu")


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "copy"))


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def in_terminal(*arguments: str, turns: list[tuple[str, str]] = (), columns: int = 60, **environment: str):
    """Run the command on a terminal; for each turn wait for its first text, then type its second."""
    pid, terminal = pty.fork()
    if pid == 0:
        # A test run in the background is started with this signal ignored, and children inherit that.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.environ.update(TERM="xterm-256color", COLUMNS=str(columns), LINES="24", **environment)
        os.execv(COMMAND[0], [*COMMAND, *arguments])
    shown, seen, ends = "", 0, time.monotonic() + 120
    waiting = list(turns)
    while time.monotonic() < ends:
        if waiting and waiting[0][0] in shown[seen:]:
            seen = len(shown)
            os.write(terminal, waiting.pop(0)[1].encode())
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            data = os.read(terminal, 4096)
        except OSError:
            break
        if not data:
            break
        shown += data.decode("utf-8", errors="replace")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    return code, shown


# --- the command -----------------------------------------------------------------------------------------------------


def test_version_is_that_of_the_installed_package():
    from importlib.metadata import version

    assert run("--version").stdout == f"llada {version('llada-hf')}\n"


# --- generate --------------------------------------------------------------------------------------------------------


def test_in_a_pipe_only_the_answer_is_printed_and_it_is_the_one_generate_returns(checkpoint):
    ids = torch.tensor([checkpoint.tokenizer("hello")["input_ids"]])
    answer = checkpoint.model.generate(ids, max_new_tokens=8, stop_at_eos=False)[0, ids.shape[1] :]
    expected = checkpoint.tokenizer.decode(answer, skip_special_tokens=True) + "\n"
    process = subprocess.run(
        [*COMMAND, "generate", "hello", *SHORT],
        capture_output=True,
        check=True,
        env={
            **os.environ,
            "FORCE_COLOR": "1",
            "PYTHONIOENCODING": "utf-8",
        },
    )
    assert process.stdout.decode("utf-8") == expected


def test_json_tells_the_prompt_the_answer_and_what_it_cost():
    (answer,) = answers_of("hello", *SHORT, "--steps", "4", "--block-length", "8")
    assert list(answer) == ["prompt", "answer", "forward_passes", "tokens", "seconds"]
    assert (answer["prompt"], answer["forward_passes"], answer["tokens"]) == ("hello", 4, 8)
    assert answer["seconds"] > 0


def test_prompts_come_from_stdin_one_a_line_if_none_is_given():
    answers = answers_of(*SHORT, stdin="one\n\n  two\r\nthree é")
    assert [answer["prompt"] for answer in answers] == ["one", "  two", "three é"]


@pytest.mark.parametrize("options", [[], ["--temperature", "1", "--seed", "3", "--top-k", "50", "--top-p", "0.9"]])
def test_answers_do_not_depend_on_the_batch(options):
    prompts = ["a", "a longer prompt", "b"]
    alone = answers_of(*prompts, *SHORT, *options)
    together = answers_of(*prompts, *SHORT, *options, "--batch-size", "2")
    assert [answer["answer"] for answer in alone] == [answer["answer"] for answer in together]


def test_a_seed_repeats_the_draws_and_another_changes_them():
    first, again, other = (
        answers_of("a", *SHORT, "--temperature", "1", "--seed", seed)[0]["answer"] for seed in ("1", "1", "2")
    )
    assert first == again != other


def test_options_that_are_not_given_come_from_the_checkpoint(copy):
    edit_json(copy / "generation_config.json", max_new_tokens=5, stop_at_eos=False, remasking="margin")
    assert answers_of("hello", "-m", str(copy))[0]["tokens"] == 5


def test_an_answer_ends_at_a_stop_string_of_which_there_may_be_several(tmp_path):
    (whole,) = answers_of("hello", *SHORT)
    stop = whole["answer"][2:4]
    expected = whole["answer"][: whole["answer"].index(stop) + 2]
    (answer,) = answers_of("hello", *SHORT, "--stop-strings", "not there", "--stop-strings", stop)
    assert answer["answer"].startswith(expected) and answer["tokens"] < whole["tokens"]
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hello"}\n')
    files = ["--input", str(tmp_path / "prompts.jsonl"), "--output", str(tmp_path / "answers.jsonl")]
    assert run("generate", *files, *SHORT, "--stop-strings", stop).exit_code == 0
    assert json.loads((tmp_path / "answers.jsonl").read_text())["answer"] == answer["answer"]


def test_a_length_of_prompt_and_answer_lets_the_answer_grow(checkpoint):
    ids = torch.tensor([checkpoint.tokenizer("hello")["input_ids"]])
    length = ids.shape[1] + 5
    grown = checkpoint.model.generate(ids, max_new_tokens=None, max_length=length, stop_at_eos=False)[0, ids.shape[1] :]
    (answer,) = answers_of("hello", *MODEL, "--max-length", str(length), "--no-stop-at-eos")
    assert answer["answer"] == checkpoint.tokenizer.decode(grown, skip_special_tokens=True)


def test_chat_puts_the_prompt_as_a_users_turn(checkpoint):
    ids = torch.tensor([encode_chat(checkpoint.tokenizer, [{"role": "user", "content": "hello"}])])
    answer = checkpoint.model.generate(ids, max_new_tokens=8, stop_at_eos=False)[0, ids.shape[1] :]
    expected = checkpoint.tokenizer.decode(answer, skip_special_tokens=True)
    assert answers_of("hello", "--chat", *SHORT)[0]["answer"] == expected


def test_infill_fills_the_masks_and_leaves_the_rest():
    prompts = ["The <|mdm_mask|><|mdm_mask|> sat.", "Mask: <|mdm_mask|>"]
    first, second = answers_of(*prompts, *MODEL, "--infill", "--batch-size", "2")
    assert first["answer"].startswith("The ")
    assert first["answer"].endswith(" sat.")
    assert second["answer"].startswith("Mask: ")
    assert (first["tokens"], second["tokens"]) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--steps", "1", "-n", "64"], "`steps` must be at least the number of blocks (2), got 1"),
        (["a", "--remasking", "confidence"], "`remasking` must be one of low_confidence"),
        (["a", "--temperature", "-1"], "`temperature` must be 0, or from 1e-6 to 1e6"),
        (["a", "--chat", "--infill"], "`--chat` and `--infill` exclude each other"),
        (["a<|mdm_mask|>", "--infill", "-n", "4"], "`--max-new-tokens` has no effect"),
        (["a", "--infill"], "`--infill` found no <|mdm_mask|> in 'a'"),
        (["a<|mdm_mask|>"], "pass `--infill` to fill it"),
        (["a", "  "], "A prompt is empty"),
        ([], "There is no prompt"),
        (["a", "--dtype", "int8"], "`dtype` must be one of auto, float32"),
        (["a", "--device", "abacus"], "`device` 'abacus' is not available here"),
        (["a", "--device", "meta"], "`device` must hold numbers, got 'meta', which has shapes only; pass e.g. cpu"),
        (
            ["a", "--seed", str(2**64)],
            "`--seed` must be from -9223372036854775808 to 18446744073709551614, as each",
        ),
        (["a", "b", "--seed", str(2**64 - 2)], "`--seed` must be from"),
        (["\udcff"], r"A prompt must be UTF-8, got '\udcff'; write it in a terminal that uses UTF-8"),
        (["\udcff", "--json", "--chat"], r"A prompt must be UTF-8, got '\udcff'"),
    ],
)
def test_a_users_mistake_is_one_line_on_stderr(arguments, message):
    assert_fails(run("generate", *arguments, *MODEL, stdin=""), message)


def test_animations_of_the_answers_are_written_and_change_nothing(tmp_path):
    path = tmp_path / "out.svg"
    plain, drawn = (answers_of("a", "hello", *SHORT, *extra) for extra in ([], ["--animate", str(path)]))
    assert [answer["answer"] for answer in drawn] == [answer["answer"] for answer in plain]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out-2.svg", "out.svg"]
    assert ">hello</text>" in (tmp_path / "out-2.svg").read_text(encoding="utf-8")
    assert run("generate", "a<|mdm_mask|>", "--infill", *MODEL, "--animate", str(path)).exit_code == 0
    assert "1 tokens in 1 passes" in path.read_text(encoding="utf-8")
    grown = ["--max-length", "24", "--block-length", "4", "--no-stop-at-eos"]
    assert run("generate", "a", *MODEL, *grown, "--animate", str(path)).exit_code == 0
    assert run("chat", *SHORT, "--animate", str(path), stdin="one\ntwo\n").exit_code == 0
    assert ">two</text>" in (tmp_path / "out-2.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["a", "--animate", "a.png"], "`--animate` must name a file that ends in .svg or .gif, got `a.png`"),
        (["a", "--animate", "a.svg", "--batch-size", "2"], "`--animate` draws one answer at a time"),
        (["--input", "a.txt", "--output", "b", "--animate", "a.svg"], "`--animate` cannot be combined with --input"),
    ],
)
def test_an_animation_that_cannot_be_drawn_is_refused(arguments, message):
    assert_fails(run("generate", *arguments, *MODEL), message)


def test_a_byte_order_mark_on_stdin_is_no_part_of_the_prompt():
    assert [answer["prompt"] for answer in answers_of(*SHORT, stdin="\ufeffone\n\ufefftwo\n")] == ["one", "\ufefftwo"]
    assert (
        run(*CHAT, "--no-stop-at-eos", stdin="\ufeffhello\n").stdout
        == run(*CHAT, "--no-stop-at-eos", stdin="hello\n").stdout
    )


def test_a_stdin_that_is_not_text_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n\xff\n"), encoding="utf-8"))
    with pytest.raises(ValueError, match="stdin is not UTF-8"):
        read_prompts()


def test_a_closed_stdin_or_stdout_is_an_error_and_a_closed_stderr_none(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert choose_console(answers_on_stdout=True, quiet=False) == (None, False)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="There is no prompt"):
        read_prompts()
    with pytest.raises(OSError, match="stdin is closed, but the turns are read there"):
        hold_conversation({"model": str(FOLDER)}, {})
    monkeypatch.setattr(sys, "stdout", None)
    for quiet in (False, True):
        with pytest.raises(OSError, match="stdout is closed, but the answers are printed there"):
            choose_console(answers_on_stdout=False, quiet=quiet)


def test_debug_shows_the_traceback():
    result = run("generate", "a", *MODEL, "--steps", "0", "--debug")
    assert isinstance(result.exception, ValueError)


# --- loading ---------------------------------------------------------------------------------------------------------


def test_a_sharded_checkpoint_answers_as_the_whole_one():
    assert answers_of("hello", *SHORT)[0]["answer"] == answers_of("hello", *SHORT, "-m", str(SHARDED))[0]["answer"]


def test_code_beside_the_weights_does_not_run(copy):
    for name in ("modeling_llada.py", "configuration_llada.py"):
        (copy / name).write_text("raise RuntimeError('remote code ran')\n")
    assert answers_of("hello", *SHORT, "-m", str(copy))[0]["tokens"] == 8


def test_a_folder_that_does_not_exist_is_named():
    assert_fails(run("generate", "a", "-m", "./nowhere"), "There is no folder `./nowhere`")


def test_a_hub_id_that_cannot_be_reached_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_fails(run("generate", "a", "-m", "nobody/nothing"), "nobody/nothing")


def test_a_file_is_no_checkpoint_folder():
    assert_fails(run("generate", "a", "-m", str(FOLDER / "config.json")), "is a file")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    assert_fails(run("generate", "a", "-m", str(copy)), f"has no `{name}`; download or copy the whole checkpoint")


def test_a_missing_shard_is_named(tmp_path):
    folder = Path(shutil.copytree(SHARDED, tmp_path / "copy"))
    (folder / "model-00002-of-00005.safetensors").unlink()
    assert_fails(run("generate", "a", "-m", str(folder)), "has no `model-00002-of-00005.safetensors`")


def test_cut_off_weights_are_refused(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert_fails(run("generate", "a", "-m", str(copy)), "cannot be loaded")


def test_weights_that_lack_a_tensor_are_refused(copy):
    weights = load_file(copy / "model.safetensors")
    del weights["model.transformer.blocks.1.q_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert_fails(run("generate", "a", "-m", str(copy)), "such as `model.transformer.blocks.1.q_proj.weight`")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_corrupt_file_is_refused(copy, name):
    (copy / name).write_text("{")
    assert_fails(run("generate", "a", "-m", str(copy)), name)


def test_another_kind_of_model_is_refused_by_name(copy):
    edit_json(copy / "config.json", model_type="llama")
    assert_fails(
        run("generate", "a", "-m", str(copy)), "is not a LLaDA checkpoint: its config.json has `model_type` 'llama'"
    )
    edit_json(copy / "config.json", model_type="llada2_moe")
    assert_fails(run("generate", "a", "-m", str(copy)), "is a LLaDA2, whose attention is causal between blocks")


def rename_token(folder: Path, old: str, new: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace(old, new))


def test_a_tokenizer_without_mask_token_is_refused(copy):
    rename_token(copy, "<|mdm_mask|>", "<|other|>")
    assert_fails(run("generate", "a", "-m", str(copy)), "has no mask token (`<|mdm_mask|>`)")


def test_a_mask_id_on_which_tokenizer_and_config_differ_is_refused(copy):
    edit_json(copy / "config.json", mask_token_id=487)
    assert_fails(
        run("generate", "a", "-m", str(copy)),
        "`mask_token_id` must be the same in model and tokenizer, got 487 and 488",
    )


def test_a_tokenizer_larger_than_the_embedding_is_refused(copy):
    state = json.loads((copy / "tokenizer.json").read_text())
    last = state["added_tokens"][-1]
    state["added_tokens"] += [{**last, "id": i, "content": f"<|extra_{i}|>"} for i in range(492, 513)]
    (copy / "tokenizer.json").write_text(json.dumps(state))
    assert_fails(run("generate", "a", "-m", str(copy)), "has ids up to 512, but the model's embedding only 512 rows")


# --- chat ------------------------------------------------------------------------------------------------------------

CHAT = ["chat", *MODEL, "-n", "8"]


def test_a_piped_conversation_prints_one_answer_a_turn_and_remembers(checkpoint):
    def answer(messages):
        ids = torch.tensor([encode_chat(checkpoint.tokenizer, messages)])
        out = checkpoint.model.generate(ids, max_new_tokens=8)[0, ids.shape[1] :].tolist()
        out = out[: next((i for i, token in enumerate(out) if token in (EOS, EOT)), None)]
        return checkpoint.tokenizer.decode(out, skip_special_tokens=True)

    messages = [{"role": "system", "content": "Be kind."}]
    expected = []
    for turn in ("hello", "and again"):
        messages.append({"role": "user", "content": turn})
        expected.append(answer(messages))
        messages.append({"role": "assistant", "content": expected[-1]})
    result = run(*CHAT, "--system", "Be kind.", stdin="hello\n\nand again\n")
    assert result.exit_code == 0
    assert result.stdout == "".join(text + "\n" for text in expected)


def test_reset_forgets_the_conversation():
    result = run(*CHAT, stdin="hello\n/reset\nhello\n")
    first, second = result.stdout[: len(result.stdout) // 2], result.stdout[len(result.stdout) // 2 :]
    assert first == second != ""
    assert "forgotten" in result.stderr


def test_exit_ends_the_conversation_and_help_is_no_turn():
    result = run(*CHAT, stdin="/help\n/frobnicate now\n/exit\nhello\n")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "forget the conversation" in result.stderr
    assert "There is no command /frobnicate. /help lists them." in result.stderr


def test_a_conversation_that_grows_too_long_loses_its_oldest_exchange_with_a_notice():
    turn = "x" * 100 + "\n"
    result = run(*CHAT, stdin=turn * 3)
    assert result.exit_code == 0
    assert "the oldest 1 exchange(s) are forgotten" in result.stderr


def test_the_system_turn_and_the_last_exchanges_are_kept(checkpoint):
    conversation = Conversation(checkpoint.tokenizer, max_prompt_length=100, system="S")
    for text in ("a" * 20, "b" * 20):
        conversation.ask(text)
        conversation.reply("r")
    ids, num_dropped = conversation.ask("c")
    text = checkpoint.tokenizer.decode(ids)
    assert num_dropped == 1
    assert text.startswith("<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>")
    assert "aaa" not in text
    assert "b" * 20 in text


def test_a_turn_that_is_too_long_alone_raises_and_changes_nothing(checkpoint):
    conversation = Conversation(checkpoint.tokenizer, max_prompt_length=50)
    conversation.ask("a")
    conversation.reply("b")
    with pytest.raises(ValueError, match="only 50 fit beside the answer; shorten it"):
        conversation.ask("c" * 60)
    assert [turn["content"] for turn in conversation.turns] == ["a", "b"]


def test_a_turn_may_not_hold_the_mask_token(checkpoint):
    with pytest.raises(ValueError, match=r"must not contain <\|mdm_mask\|>"):
        Conversation(checkpoint.tokenizer, max_prompt_length=50).ask("a <|mdm_mask|>")


def test_a_piped_turn_that_is_too_long_is_an_error():
    assert_fails(run(*CHAT, stdin="x" * 300 + "\n"), "This turn has 323 tokens with its headers, but only 248 fit")


def test_an_answer_that_leaves_no_room_for_the_conversation_is_an_error():
    assert_fails(run("chat", *MODEL, "-n", "256", stdin="a\n"), "`--max-new-tokens` must leave room")


def test_a_tokenizer_without_chat_tokens_chats_in_plain_text_with_a_notice(copy):
    for token in ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"):
        rename_token(copy, token, token.replace("<|", "<|no_"))
    result = run("chat", "-m", str(copy), "-n", "8", stdin="hello\n")
    assert result.exit_code == 0
    assert result.stdout != ""
    assert "The tokenizer lacks <|start_header_id|>, <|end_header_id|>, <|eot_id|>" in result.stderr


# --- train -----------------------------------------------------------------------------------------------------------


def test_train_hands_every_argument_on_to_the_trainer_even_help():
    result = run("train", "pretrain", "--help")
    assert result.exit_code == 0
    assert "--learning_rate" in result.stdout or "--learning-rate" in result.stdout


def test_train_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "llada_training", None)
    result = run("train", "pretrain", "--anything", "1")
    assert result.exit_code == 2
    assert 'pip install ".[train]" in the checkout' in result.stderr


# --- the canvas ------------------------------------------------------------------------------------------------------


def string_console(**options) -> Console:
    settings = {"force_terminal": True, "width": 40, "height": 10, "color_system": "standard", "legacy_windows": False}
    return Console(**{"file": io.StringIO(), **settings, **options})


def last_frame(console: Console) -> str:
    """What is left after the cursor last went back to the start of the canvas."""
    written = console.file.getvalue().replace("\r\n", "\n").replace("\x1b[?7h", "").replace("\x1b[?7l", "")
    return written.rsplit("\x1b[2K", 1)[-1]


def stream(checkpoint, console, drafts, finished=(), prompts=("p: ",), **options) -> str:
    with CanvasStreamer(checkpoint.tokenizer, console, list(prompts), seconds_per_frame=0, **options) as streamer:
        streamer.put(torch.tensor([[1]] * len(prompts)))
        for draft in drafts:
            streamer.put_draft(torch.tensor(draft))
        for block in finished:
            streamer.put(torch.tensor(block))
        streamer.end()
    return console.file.getvalue()


def ids_of(checkpoint, text: str) -> list[int]:
    return checkpoint.tokenizer(text)["input_ids"]


def test_masked_positions_are_dim_blocks_and_fresh_tokens_are_highlighted(checkpoint):
    a, b, c = ids_of(checkpoint, "abc")
    text = canvas_text([a, MASK, MASK, b, c], [False, False, False, True, False], checkpoint.tokenizer)
    assert text.plain == "a░░bc"
    assert [(span.start, span.end, span.style) for span in text.spans] == [(1, 3, "dim"), (3, 4, "bold green")]


def test_a_character_of_two_tokens_is_decoded_whole(checkpoint):
    text = canvas_text(ids_of(checkpoint, "é"), [False, True], checkpoint.tokenizer)
    assert text.plain == "é"


def test_special_tokens_are_not_shown(checkpoint):
    assert canvas_text([EOS, *ids_of(checkpoint, "a"), EOT], [False] * 3, checkpoint.tokenizer).plain == "a"


def test_control_characters_do_not_reach_the_terminal(checkpoint):
    text = canvas_text(ids_of(checkpoint, "a\x1b[2J\tb\n"), [False] * 8, checkpoint.tokenizer)
    assert text.plain == "a\ufffd[2J\tb\n"


def test_an_answer_is_cut_at_its_first_stop_token_once_nothing_before_it_is_masked():
    assert cut_at_stop([1, 2, EOT, 3, EOS], {EOS, EOT}, MASK) == [1, 2]
    assert cut_at_stop([1, MASK, EOT, 3], {EOS, EOT}, MASK) == [1, MASK, EOT, 3]
    assert cut_at_stop([1, EOT, MASK], {EOS, EOT}, MASK) == [1]
    assert cut_at_stop([1, 2], {EOS}, MASK) == [1, 2]


def test_each_draft_replaces_the_last_and_the_finished_text_stays(checkpoint):
    a, b = ids_of(checkpoint, "ab")
    console = string_console(color_system=None)
    written = stream(checkpoint, console, [[[MASK, b]], [[a, b]]])
    assert "p: ░b" in written
    assert last_frame(console).rstrip().startswith("p: ab")


def test_finished_blocks_stay_before_the_drafts_of_the_next(checkpoint):
    a, b, c, d = ids_of(checkpoint, "abcd")
    console = string_console(color_system=None)
    with CanvasStreamer(checkpoint.tokenizer, console, [""], seconds_per_frame=0) as streamer:
        streamer.put(torch.tensor([[1, 2, 3]]))
        streamer.put_draft(torch.tensor([[a, b, MASK, MASK]]))
        streamer.put(torch.tensor([[a, b]]))
        streamer.put_draft(torch.tensor([[c, MASK]]))
        assert last_frame(console) == "abc░"
        streamer.put_draft(torch.tensor([[c, d]]))
        streamer.put(torch.tensor([[c, d]]))
        streamer.end()
    assert last_frame(console).rstrip().startswith("abcd")


def test_an_answer_that_ends_at_a_stop_string_is_shown_up_to_it(checkpoint):
    ids = torch.tensor([ids_of(checkpoint, "hello")])
    options = {"max_new_tokens": 8, "block_length": 4, "stop_at_eos": False}
    answer = checkpoint.model.generate(ids, **options)[0, ids.shape[1] :]
    stop = checkpoint.tokenizer.decode(answer[:2])
    console = string_console(color_system=None, width=200)
    with CanvasStreamer(checkpoint.tokenizer, console, ["hello"], seconds_per_frame=0) as streamer:
        checkpoint.model.generate(ids, streamer=streamer, stop_strings=stop, tokenizer=checkpoint.tokenizer, **options)
    assert last_frame(console).rstrip("\x1b[?25h\n ") == ("hello" + stop).rstrip()


def test_generate_and_infill_report_what_the_canvas_needs(checkpoint):
    tokenizer = checkpoint.tokenizer
    for infill in (False, True):
        console = string_console(color_system=None, width=200)
        ids = ids_of(checkpoint, "hello") + [MASK] * (3 if infill else 0)
        call = checkpoint.model.infill if infill else checkpoint.model.generate
        options = {} if infill else {"max_new_tokens": 12, "block_length": 4, "stop_at_eos": False}
        shown = [] if infill else ["hello"]
        with CanvasStreamer(tokenizer, console, shown, seconds_per_frame=0) as streamer:
            out = call(torch.tensor([ids]), streamer=streamer, **options)
        expected = canvas_text(out[0].tolist(), [False] * out.shape[1], tokenizer).plain
        expected = expected.rsplit("\n", 1)[-1].rstrip()
        assert last_frame(console).rstrip("\n\x1b[?25h").endswith(expected)


def test_rows_of_a_batch_are_shown_below_each_other(checkpoint):
    a, b = ids_of(checkpoint, "ab")
    console = string_console(color_system=None)
    stream(checkpoint, console, [[[a], [b]]], prompts=["1: ", "2: "])
    assert last_frame(console).startswith("1: a\n\n2: b")


def test_long_text_wraps_at_the_width_of_the_console(checkpoint):
    console = string_console(color_system=None, width=20)
    stream(checkpoint, console, [[ids_of(checkpoint, "word " * 12)]])
    assert [line.rstrip() for line in last_frame(console).splitlines()[:3]] == [
        "p: word word word",
        "word word word word",
        "word word word word",
    ]


def test_a_canvas_taller_than_the_console_shows_its_newest_part_until_it_is_finished(checkpoint):
    console = string_console(color_system=None, width=20, height=5)
    ids = ids_of(checkpoint, "".join(f"line {i}\n" for i in range(10)))
    with CanvasStreamer(checkpoint.tokenizer, console, [""], seconds_per_frame=0) as streamer:
        streamer.put(torch.tensor([[1]]))
        streamer.put_draft(torch.tensor([ids + [MASK] * 200]))
        frame = console.file.getvalue()
        assert "line 9" in frame
        assert "line 3" not in frame
        streamer.put_draft(torch.tensor([ids]))
        streamer.end()
    assert all(f"line {i}" in console.file.getvalue() for i in range(10))


def test_a_canvas_that_does_not_stay_is_wiped(checkpoint):
    console = string_console(color_system=None)
    stream(checkpoint, console, [[ids_of(checkpoint, "ab")]], stays=False)
    assert last_frame(console).strip("\r\n") == ""


def test_no_color_is_respected(checkpoint, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    written = stream(checkpoint, string_console(), [[[MASK, *ids_of(checkpoint, "ab")]]])
    assert "\x1b[1;32m" not in written
    assert "\x1b[1m" in written


def test_a_console_that_cannot_show_blocks_gets_underscores(checkpoint):
    class Ascii(io.StringIO):
        encoding = "ascii"

    console = string_console(file=Ascii(), color_system=None)
    assert "p: _b" in stream(checkpoint, console, [[[MASK, *ids_of(checkpoint, "b")]]])


def test_without_a_terminal_no_canvas_is_shown():
    assert choose_console(answers_on_stdout=False, quiet=False) == (None, False)


# --- a real terminal -------------------------------------------------------------------------------------------------


def test_on_a_terminal_the_canvas_is_denoised_and_the_answer_printed_once():
    code, shown = in_terminal("generate", "hello", *SHORT, "--steps", "2")
    assert code == 0
    assert "░" in shown
    assert "8 tokens · 2 passes" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_ctrl_c_gives_the_cursor_back_and_exits_with_130():
    # So many prompts that the key is pressed long before the end.
    prompts = ["hello"] * 100
    code, shown = in_terminal("generate", *prompts, *MODEL, "-n", "240", "--no-stop-at-eos", turns=[("░", "\x03")])
    assert code == 130
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert "Traceback" not in shown
