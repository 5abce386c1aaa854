"""`llada chat` on a real terminal: what stands on the screen, what the keys do, and the commands with a slash."""

import fcntl
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from llada_cli.chat import COMMANDS, Chat, read_value, show_help
from llada_cli.turns import is_open, unquote
from llada_core.loading import load_checkpoint

pyte = pytest.importorskip("pyte", reason="pyte emulates the terminal")

FOLDER = Path(__file__).parents[1] / "reference" / "checkpoints" / "mha"
CHAT = ["chat", "--model", str(FOLDER), "--device", "cpu"]
COMMAND = [sys.executable, "-m", "llada_cli"]
# An answer that takes many passes, of which each commits a token, and never ends early.
LONG = ["-n", "160", "--block-length", "160", "--no-stop-at-eos"]


class Terminal:
    """A command on a pseudo terminal, and the screen that its output makes.

    Args:
        arguments: of the command `llada`.
        columns, lines: the size of the window.
    """

    def __init__(self, *arguments: str, columns: int = 80, lines: int = 24):
        self.screen = pyte.HistoryScreen(columns, lines, history=500)
        self.stream = pyte.ByteStream(self.screen)
        self.began = time.monotonic()
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
            time.sleep(0.1)  # the size is set by the parent
            os.execve(COMMAND[0], [*COMMAND, *arguments], {**environment, "TERM": "xterm-256color"})
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.write_process_input = lambda data: os.write(self.fd, data.encode())
        self.code: int | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)

    @property
    def lines(self) -> list[str]:
        """The lines of the screen, those that have left it at the top first."""
        before = ["".join(line[i].data for i in range(self.screen.columns)) for line in self.screen.history.top]
        return [line.rstrip() for line in [*before, *self.screen.display]]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def wait_for(self, *texts: str, count: int = 1, seconds: float = 120) -> float:
        """Wait until one of the texts stands on the screen `count` times; return the seconds since the start."""
        ends = time.monotonic() + seconds
        while not any(self.text.count(text) >= count for text in texts):
            assert time.monotonic() < ends, f"no {texts} in {seconds} s:\n{self.text}"
            assert self._read(), f"ended without {texts}:\n{self.text}"
        return time.monotonic() - self.began

    def wait_for_prompt(self) -> None:
        """Wait until the last line that is not empty is the prompt."""
        ends = time.monotonic() + 120
        while ([line for line in self.lines if line] or [""])[-1] != ">":
            assert time.monotonic() < ends, self.text
            assert self._read(), self.text

    def finish(self) -> int:
        """Wait for the end of the command; return its exit code."""
        while self._read():
            pass
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def _read(self) -> bool:
        """Take in what is there, waiting at most a second; return whether there may be more."""
        if not select.select([self.fd], [], [], 1)[0]:
            return True
        try:
            data = os.read(self.fd, 4096)
        except OSError:
            return False
        self.stream.feed(data)
        return bool(data)


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(str(FOLDER), device="cpu")


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (50, 20)])
def test_a_chat_shows_at_once_that_it_loads_stops_an_answer_and_goes_on(columns, lines, tmp_path):
    with Terminal(*CHAT, *LONG, columns=columns, lines=lines) as terminal:
        terminal.wait_for("Starting", "Loading")
        terminal.wait_for_prompt()
        terminal.type("/help\r")
        terminal.wait_for("/exit")
        terminal.wait_for_prompt()
        shown = terminal.text.split()
        words = [word for arguments, meaning in COMMANDS.values() for word in f"{arguments} {meaning}".split()]
        assert [word for word in words if word not in shown] == []
        assert max(map(len, terminal.lines)) <= columns

        terminal.type("hello\r")
        terminal.wait_for("░")
        terminal.type("\x03")
        terminal.wait_for("Stopped.")
        terminal.wait_for_prompt()
        assert "░" not in terminal.text

        # A paragraph that is pasted, as terminals bracket it, is one turn.
        terminal.type("/set max_new_tokens 4\r")
        terminal.wait_for("`max_new_tokens` is 4")
        terminal.wait_for_prompt()
        terminal.type("\x1b[200~one\ntwo\n\nthree\x1b[201~\r")
        terminal.wait_for("three")
        terminal.wait_for_prompt()
        file = tmp_path / "c.jsonl"
        terminal.type(f'/reset\r"""\rfour\rfive"""\r/save {file}\r')
        terminal.wait_for("Written")
        messages = json.loads(file.read_text())["messages"]
        assert [turn["content"] for turn in messages if turn["role"] == "user"] == ["four\nfive"]
        terminal.wait_for_prompt()
        terminal.type("\x03")
        terminal.wait_for("Ctrl-C again")
        terminal.wait_for_prompt()
        terminal.type("\x03")
        assert terminal.finish() == 0


def test_a_typed_conversation_goes_on_after_a_turn_that_is_too_long_and_ends_at_end_of_file():
    with Terminal(*CHAT, "-n", "8", columns=60) as terminal:
        terminal.wait_for_prompt()
        terminal.type("x" * 300 + "\r")
        terminal.wait_for("Error: This turn has")
        terminal.wait_for_prompt()
        terminal.type("\x04")
        assert terminal.finish() == 0
    assert "Traceback" not in terminal.text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux breaks lines anew when its window changes")
def test_a_window_that_becomes_narrower_during_an_answer_leaves_no_stale_line(tmp_path):
    tmux = ["tmux", "-S", str(tmp_path / "socket"), "-f", "/dev/null"]

    def shown() -> str:
        # The window only: what tmux moves into its history as it breaks lines is out of reach.
        return subprocess.run([*tmux, "capture-pane", "-p"], check=True, capture_output=True, text=True).stdout

    def wait_for(text: str, count: int = 1) -> None:
        ends = time.monotonic() + 120
        while shown().count(text) < count:
            assert time.monotonic() < ends, shown()
            time.sleep(0.05)

    command = " ".join([*COMMAND, *CHAT, *LONG])
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    subprocess.run([*tmux, "new-session", "-d", "-x", "90", "-y", "24", command], check=True, env=environment)
    try:
        wait_for("\n>")
        subprocess.run([*tmux, "send-keys", "hello", "Enter"], check=True)
        wait_for("░░░░░")
        subprocess.run([*tmux, "resize-window", "-x", "47"], check=True)
        ends = time.monotonic() + 120
        while not shown().rstrip().endswith("\n>"):
            assert time.monotonic() < ends, shown()
            time.sleep(0.1)
        # What stands above the prompt is the answer once, in the new width: at most four lines for its 160 tokens.
        screen = shown()
        assert "░" not in screen, f"\n{screen}"
        assert 0 < len(screen.split("> hello")[-1].split()) <= 6
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)


# --- turns -----------------------------------------------------------------------------------------------------------


def test_a_turn_of_several_lines_stands_between_three_quotation_marks():
    assert [is_open(text) for text in ('"""', '"""a', '"""a\nb"""', '""" """', "a", 'a """', '""""')] == [
        True, True, False, False, False, False, True,
    ]  # fmt: skip
    assert [unquote(text) for text in ('"""\na\nb\n"""', ' """a"""', " a ", '"""')] == ["a\nb", "a", "a", ""]


def piped(*arguments: str, stdin: str):
    return subprocess.run([*COMMAND, *CHAT, *arguments], input=stdin, capture_output=True, text=True, check=False)


def test_a_pipe_may_hold_turns_of_several_lines(tmp_path):
    file = tmp_path / "c.jsonl"
    done = piped("-n", "4", stdin=f'"""one\n\ntwo"""\nthree\n/save {file}\n')
    assert done.returncode == 0, done.stderr
    messages = json.loads(file.read_text(encoding="utf-8"))["messages"]
    assert [turn["content"] for turn in messages if turn["role"] == "user"] == ["one\n\ntwo", "three"]
    done = piped("-n", "4", stdin='"""one\n')
    assert (done.returncode, done.stdout) == (2, "")
    assert 'A turn begins with """ and is not closed' in done.stderr


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def chat(checkpoint) -> Chat:
    return Chat(checkpoint, {"max_new_tokens": 8, "stop_at_eos": False})


def test_set_changes_an_option_and_default_gives_it_back(chat, capsys):
    chat.obey("/set steps 4")
    assert "`steps` is 4 (None or at least 1)" in " ".join(capsys.readouterr().err.split())
    chat.answer("hello")
    assert chat.last.answer.num_forward_passes == 4
    chat.obey("/set --top-k=5")
    assert chat.options["top_k"] == 5
    chat.obey("/set steps default")
    assert "steps" not in chat.options
    chat.obey("/set")
    assert "max_new_tokens = 8, stop_at_eos = False, top_k = 5" in " ".join(capsys.readouterr().err.split())


def test_a_length_that_is_set_changes_the_room_for_turns_and_replaces_the_other_length(chat):
    longest = chat.checkpoint.model.config.max_sequence_length
    chat.obey("/set gen_length 20")
    assert chat.conversation.max_prompt_length == longest - 20
    chat.obey("/set max_length 100")
    assert "max_new_tokens" not in chat.options
    chat.obey("/set max_new_tokens 4")
    assert "max_length" not in chat.options


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set stepps 4", r"Unknown generation option `stepps`; did you mean `steps`\?"),
        ("/set steps many", "`steps` must be None or at least 1, got 'many'"),
        ("/set temperature -1", "`temperature` must be 0, or from 1e-6 to 1e6, got -1.0"),
        ("/set remasking best", "`remasking` must be one of low_confidence"),
        ("/set stop_at_eos maybe", "`stop_at_eos` must be True or False, got 'maybe'"),
        ("/set max_new_tokens 5000", "`--max-new-tokens` must leave room"),
        ("/set seed x", "`--seed` must be an integer, got 'x'"),
        ("/set output_history true", "`output_history` cannot be set in a chat"),
        ("/replay fast", "`/replay` takes the word slow or nothing, got 'fast'"),
        ("/save", "`/save` needs the name of a file"),
        ("/save /nowhere/a.jsonl", "`/save` needs the name of a file in a folder that exists"),
        ("/save a.jsonl", "There is no answer to save yet"),
    ],
)
def test_a_command_that_cannot_be_carried_out_says_why_and_changes_nothing(chat, line, message):
    before = dict(chat.options)
    with pytest.raises(ValueError, match=message):
        chat.obey(line)
    assert chat.options == before


def test_two_commit_rules_at_once_are_refused(chat):
    chat.obey("/set threshold 0.9")
    with pytest.raises(ValueError, match="`threshold` and `factor` are two commit rules"):
        chat.obey("/set factor 1")
    assert chat.options["threshold"] == 0.9 and "factor" not in chat.options


def test_a_seed_that_is_set_repeats_the_draws(chat):
    chat.obey("/set temperature 1")
    answers = []
    for _ in range(2):
        chat.obey("/set seed none")
        chat.obey("/set seed 3")
        chat.obey("/reset")
        chat.answer("hello")
        answers.append(chat.last.answer.text)
    assert answers[0] == answers[1]


def test_options_that_cannot_answer_leave_the_conversation_as_it_was(chat):
    chat.obey("/set block_length 1")
    chat.obey("/set steps 2")
    with pytest.raises(ValueError, match="`steps` must be at least the number of blocks"):
        chat.answer("hello")
    assert chat.conversation.turns == []


def test_the_stats_are_those_of_the_last_answer_and_of_the_chat(chat, capsys):
    chat.obey("/stats")
    assert "There is no answer yet." in capsys.readouterr().err
    chat.obey("/set steps 4")
    chat.answer("hello")
    chat.obey("/set steps 8")
    chat.answer("hello")
    capsys.readouterr()
    chat.obey("/stats")
    rows = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert rows[1][:5] == ["last", "1", "8", "8", "1.00"]
    assert rows[2][:5] == ["chat", "2", "12", "16", "1.33"]


def test_what_is_saved_is_the_whole_chat_and_is_replaced_only_where_this_chat_wrote_it(chat, tmp_path):
    chat.obey("/system Be kind.")
    chat.answer("hello")
    file = tmp_path / "c.jsonl"
    chat.obey(f"/save {file}")
    chat.answer("again")
    chat.obey(f"/save {file}")
    (line,) = file.read_text(encoding="utf-8").splitlines()
    roles = [turn["role"] for turn in json.loads(line)["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    other = tmp_path / "other.jsonl"
    other.write_text("mine")
    with pytest.raises(FileExistsError, match=r"There is a file .* already; name another"):
        chat.obey(f"/save {other}")
    chat.obey(f"/save {tmp_path / 'a.svg'}")
    assert ">again</text>" in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_the_instruction_can_be_changed_and_taken_away(chat, capsys):
    chat.obey("/system")
    chat.obey("/system Be brief.")
    assert chat.conversation.system == [{"role": "system", "content": "Be brief."}]
    chat.obey("/system none")
    assert chat.conversation.system == []
    shown = capsys.readouterr().err
    assert "There is no instruction." in shown and "The instruction is: Be brief." in shown


def test_what_is_kept_of_an_answer_that_is_stopped_stands_before_its_first_mask(chat, monkeypatch):
    chat.answer("hello")
    frames = chat.last.frames
    mask = chat.checkpoint.tokenizer.mask_token_id
    for number, frame in enumerate(frames[:-1]):
        kept = chat._committed_start(frames[: number + 1], 0.0)
        assert kept.num_tokens == frame.ids.index(mask)
        assert kept.num_forward_passes == number


def test_values_are_read_by_the_kind_of_their_option():
    cases = {"steps": ("4", 4), "temperature": ("0.5", 0.5), "compile": ("on", True), "cache": ("dual", "dual")}
    assert {name: read_value(name, text) for name, (text, _) in cases.items()} == {
        name: value for name, (_, value) in cases.items()
    }
    assert read_value("steps", "none") is None and read_value("stop_strings", "none of it") == "none of it"


def test_the_help_names_every_command(capsys):
    show_help()
    shown = capsys.readouterr().err
    assert all(name in shown for name in COMMANDS)
