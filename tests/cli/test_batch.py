"""`llada generate --input --output`: no line is lost or repeated, whatever happens, and mistakes are named."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from llada_cli.main import app
from llada_core.resume import RecordFile

FOLDER = Path(__file__).parents[1] / "reference" / "checkpoints" / "mha"
OPTIONS = ["-n", "8", "--block-length", "4", "--no-stop-at-eos"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with a file of prompts in it."""
    monkeypatch.chdir(tmp_path)
    write_lines("prompts.jsonl", [{"id": f"no. {n}", "prompt": f"prompt {'x' * (7 * n % 5)}{n}"} for n in range(7)])
    return tmp_path


def write_lines(path: str, records: list[dict]) -> None:
    Path(path).write_text("".join(json.dumps(record) + "\n" for record in records))


def read_lines(path: str = "answers.jsonl") -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def run(*arguments: str, files: tuple[str, str] = ("prompts.jsonl", "answers.jsonl"), **environment: str):
    """Call the command in this process."""
    command = ["generate", "-m", str(FOLDER), *OPTIONS, "--input", files[0], "--output", files[1], *arguments]
    return CliRunner().invoke(app, command, env={"COLUMNS": "200", **environment})


def answers_of(*arguments: str, **options) -> list[dict]:
    result = run(*arguments, **options)
    assert result.exit_code == 0, result.stderr
    return read_lines(options.get("files", (None, "answers.jsonl"))[1])


def plain_answers(*arguments: str, stdin: str) -> list[dict]:
    """What the command prints without files, one prompt at a time."""
    command = ["generate", "-m", str(FOLDER), *OPTIONS, "--json", *arguments]
    return [json.loads(line) for line in CliRunner().invoke(app, command, input=stdin).stdout.splitlines()]


def assert_fails(result, message: str) -> None:
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last
    assert "Traceback" not in result.stderr


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--temperature", "1", "--seed", "5", "--cache", "dual"]])
def test_answers_are_those_of_the_prompts_alone_in_order_with_what_their_lines_held(folder, options):
    prompts = read_lines("prompts.jsonl")
    expected = plain_answers(*options, stdin="\n".join(line["prompt"] for line in prompts))
    answers = answers_of(*options, "--batch-size", "3")
    assert [list(answer) for answer in answers] == [["index", "id", "prompt", "answer", "forward_passes", "tokens"]] * 7
    assert [answer["index"] for answer in answers] == list(range(7))
    for answer, line, alone in zip(answers, prompts, expected):
        assert {key: answer[key] for key in line} == line
        assert [answer[key] for key in ("answer", "forward_passes", "tokens")] == [
            alone[key] for key in ("answer", "forward_passes", "tokens")
        ]


def test_the_index_counts_all_lines_and_blank_ones_have_no_answer(folder):
    Path("prompts.txt").write_bytes("\ufeffone\r\n\n  two é\n".encode())
    answers = answers_of(files=("prompts.txt", "answers.jsonl"))
    assert [(answer["index"], answer["prompt"]) for answer in answers] == [(0, "one"), (2, "  two é")]


def test_a_conversation_is_answered_as_the_assistant(folder):
    turn = {"role": "user", "content": "hello"}
    write_lines("chat.jsonl", [{"messages": [turn], "level": [1, None]}, {"prompt": "hello"}])
    (expected,) = plain_answers("--chat", stdin="hello")
    first, second = answers_of("--chat", files=("chat.jsonl", "answers.jsonl"))
    assert first["answer"] == second["answer"] == expected["answer"]
    assert (first["messages"], first["level"]) == ([turn], [1, None])
    (plain,) = plain_answers(stdin="hello")
    assert answers_of(files=("chat.jsonl", "other.jsonl"))[1]["answer"] == plain["answer"]


def test_progress_goes_to_stderr_and_quiet_shows_none(folder):
    result = run()
    assert result.stdout == ""
    assert "7/7" in result.stderr
    assert "7 prompts answered" in result.stderr
    assert run("--force", "--quiet").stderr == ""


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_ended_and_does_a_half_written_line_again(folder):
    whole = answers_of()
    lines = Path("answers.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = json.dumps({**whole[4], "answer": "as it was"}) + "\n"
    for half in ("", lines[5][:1], lines[5][:-1]):
        Path("answers.jsonl").write_text(kept + lines[1] + half, encoding="utf-8")
        result = run("--batch-size", "2")
        assert result.exit_code == 0
        assert "5 prompts answered" in result.stderr
        assert "(2 were there)" in result.stderr
        assert read_lines() == [*whole[:4], {**whole[4], "answer": "as it was"}, *whole[5:]]


def test_a_finished_run_is_left_as_it_is(folder):
    answers_of()
    before = Path("answers.jsonl").stat()
    answers_of()
    after = Path("answers.jsonl").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert sorted(path.name for path in folder.iterdir()) == [
        "answers.jsonl",
        "answers.jsonl.run.json",
        "prompts.jsonl",
    ]


def test_a_killed_run_loses_and_repeats_nothing(folder):
    write_lines("prompts.jsonl", [{"prompt": f"prompt {n}"} for n in range(40)])
    options = ["-n", "32", "--temperature", "1", "--seed", "1", "--batch-size", "2"]
    command = [sys.executable, "-m", "llada_cli", "generate", "-m", str(FOLDER), *OPTIONS, *options]
    process = subprocess.Popen(
        [*command, "-i", "prompts.jsonl", "-o", "answers.jsonl"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    ends = time.monotonic() + 120
    while time.monotonic() < ends and not (Path("answers.jsonl").exists() and Path("answers.jsonl").stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = Path("answers.jsonl").read_bytes().count(b"\n")
    assert 0 < written < 40
    result = run(*options)
    assert f"({written} were there)" in result.stderr
    assert [line["index"] for line in read_lines()] == list(range(40))
    assert read_lines() == answers_of(*options, files=("prompts.jsonl", "whole.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "2"], "another run: `steps` was None, now 2."),
        (["--seed", "1", "--chat"], "another run: `chat` was False, now True; `seed` was None, now 1."),
        (["--dtype", "bfloat16"], "another run: its checkpoint was another"),
    ],
)
def test_answers_of_other_options_are_refused_and_kept(folder, arguments, message):
    before = answers_of()
    assert_fails(run(*arguments), message)
    assert read_lines() == before


def test_answers_to_another_file_are_refused(folder):
    answers_of()
    write_lines("prompts.jsonl", [{"prompt": "other"}])
    assert_fails(run(), "another run: its input was another (prompts.jsonl, now prompts.jsonl). Use the same")


def test_answers_of_other_weights_are_refused_and_of_the_same_ones_elsewhere_taken(folder):
    answers_of()
    copy = Path(shutil.copytree(FOLDER, folder / "copy"))
    assert run("-m", str(copy)).exit_code == 0
    weights = load_file(copy / "model.safetensors")
    weights["model.transformer.blocks.1.q_proj.weight"] += 0.01
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert_fails(run("-m", str(copy)), "another run: its checkpoint was another")


@pytest.mark.parametrize("content", ["notes", "notes\n", '{"index": 0, "answer": "a"}\n'])
def test_a_file_that_is_not_from_this_command_is_refused_and_kept(folder, content):
    Path("answers.jsonl").write_text(content)
    assert_fails(run(), "`answers.jsonl.run.json`, which describes its run, is missing or not readable")
    assert Path("answers.jsonl").read_text() == content


def test_a_damaged_line_is_named(folder):
    answers_of()
    lines = Path("answers.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    Path("answers.jsonl").write_text("".join([*lines[:2], "{\n", *lines[3:]]), encoding="utf-8")
    assert_fails(run(), "answers.jsonl:3` is not a record with `index` and `answer`; delete the line")


def test_force_begins_anew_but_not_for_a_call_that_fails(folder):
    before = answers_of()
    assert_fails(run("--force", "--steps", "1"), "`steps` must be at least the number of blocks (2), got 1")
    assert read_lines() == before
    shutil.copy("answers.jsonl", "answers.jsonl.part-1")
    after = answers_of("--force", "--steps", "2")
    assert [answer["forward_passes"] for answer in after] == [2] * 7
    assert not Path("answers.jsonl.part-1").exists()


def test_force_keeps_a_file_that_only_has_the_name_of_a_part(folder):
    before = answers_of()
    shutil.copy("prompts.jsonl", "answers.jsonl.part-1")
    assert_fails(run("--force"), "has the name of a part of `answers.jsonl`, but holds other things than its records")
    assert read_lines() == before
    assert read_lines("answers.jsonl.part-1") == read_lines("prompts.jsonl")


@pytest.mark.parametrize("ending", ["run.json", "draft-0", "draft-1", "part-1"])
@pytest.mark.parametrize("options", [[], ["--force"]])
def test_an_input_named_like_a_file_beside_the_output_is_refused_and_kept(folder, ending, options):
    source = Path(f"a.jsonl.{ending}")
    shutil.copy("prompts.jsonl", source)
    Path("link.jsonl").symlink_to(source)
    for name in (str(source), "link.jsonl"):
        message = "`--input` must not have the name of a file that `--output` writes beside `a.jsonl`, got"
        assert_fails(run(*options, files=(name, "a.jsonl")), message)
    assert source.read_bytes() == Path("prompts.jsonl").read_bytes()
    assert not Path("a.jsonl").exists()


def test_a_second_run_on_the_same_file_is_refused_while_the_first_is_writing(folder):
    first = RecordFile(Path("answers.jsonl"))
    first.start()
    assert_fails(run(), "Another process is writing to")
    first.close()
    assert run().exit_code == 0


# --- several processes ------------------------------------------------------------------------------------------------


def as_process(rank: int, num_processes: int = 2) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_last_process_to_finish_puts_the_answers_in_order(folder, order):
    options = ["--temperature", "1", "--seed", "5"]
    whole = answers_of(*options, files=("prompts.jsonl", "whole.jsonl"))
    for rank in order[:2]:
        result = run(*options, **as_process(rank, 3))
        assert "to come from other processes" in result.stderr
    answers_of(*options, **as_process(order[2], 3))
    assert read_lines() == whole
    assert not list(folder.glob("answers.jsonl.part-*"))


def test_each_process_answers_its_share_and_another_number_of_them_goes_on(folder):
    whole = answers_of(files=("prompts.jsonl", "whole.jsonl"))
    assert run(**as_process(1)).exit_code == 0
    assert [answer["index"] for answer in read_lines("answers.jsonl.part-1")] == [1, 3, 5]
    with Path("answers.jsonl.part-1").open("a") as file:
        file.write('{"index": 0, "ans')
    result = run(**as_process(2, 3))
    assert "1 prompts answered" in result.stderr  # of its 2 and 5
    result = run()
    assert "3 prompts answered" in result.stderr
    assert read_lines() == whole


def test_force_needs_one_process(folder):
    assert_fails(run("--force", **as_process(0)), "`--force` works with one process only")


@pytest.mark.slow
def test_torchrun_shares_the_prompts_over_its_processes(folder):
    whole = answers_of(files=("prompts.jsonl", "whole.jsonl"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = ["-m", "llada_cli", "generate", "-m", str(FOLDER), *OPTIONS, "-i", "prompts.jsonl", "-o", "answers.jsonl"]
    process = subprocess.run(
        [*torchrun, *command], capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert process.returncode == 0, process.stderr
    assert read_lines() == whole
    assert "process 1 of 2" in process.stderr
    assert not list(folder.glob("answers.jsonl.part-*"))


# --- mistakes ---------------------------------------------------------------------------------------------------------

BAD_LINES = [
    ("{", "prompts.jsonl:2 is not JSON"),
    ("[1]", 'prompts.jsonl:2 must be an object such as {"prompt": "…"}, got list'),
    ('{"text": "a"}', "prompts.jsonl:2 must have either `prompt` or `messages`, got the keys text"),
    ("{}", "prompts.jsonl:2 must have either `prompt` or `messages`, got the keys none"),
    ('{"prompt": "a", "messages": []}', "must have either `prompt` or `messages`"),
    ('{"prompt": 5}', "`prompt` of prompts.jsonl:2 must be text, got int"),
    ('{"prompt": " "}', "`prompt` of prompts.jsonl:2 is empty"),
    ('{"messages": []}', "`messages` of prompts.jsonl:2 must be a list of at least one turn"),
    ('{"messages": [{"role": "user"}]}', "Every turn in `messages` of prompts.jsonl:2 must have the texts"),
    ('{"prompt": "a", "answer": "b"}', "prompts.jsonl:2 has the key `answer`, which the answer adds"),
    ('{"prompt": "\\ud800"}', "prompts.jsonl:2 is not valid UTF-8 (surrogates not allowed)"),
    ('{"prompt": "a <|mdm_mask|>"}', "prompts.jsonl:2 holds <|mdm_mask|>"),
    ('{"prompt": "a", "b": ' + "[" * 100_000 + "]" * 100_000 + "}", "prompts.jsonl:2 is not JSON (maximum recursion"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES, ids=[line[:40] for line, _ in BAD_LINES])
def test_a_bad_line_is_named_by_its_number(folder, line, message):
    Path("prompts.jsonl").write_text('{"prompt": "a"}\n' + line + "\n")
    assert_fails(run(), message)
    assert not Path("answers.jsonl").exists()


def test_a_prompt_too_long_for_an_open_answer_is_named_by_its_line(folder):
    write_lines("prompts.jsonl", [{"prompt": "a"}, {"prompt": "a" * 40}])
    command = ["generate", "-m", str(FOLDER), "-i", "prompts.jsonl", "-o", "answers.jsonl", "--max-length", "30"]
    assert_fails(CliRunner().invoke(app, command), "prompts.jsonl:2: `max_length` must leave room for an answer")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-i", "nothing.jsonl", "-o", "a"], "There is no file `nothing.jsonl`"),
        (["-i", "empty.jsonl", "-o", "a"], "`empty.jsonl` has no prompts"),
        (["-i", "bytes.jsonl", "-o", "a"], "`bytes.jsonl` is not UTF-8"),
        (["-i", "prompts.jsonl", "-o", "no/where"], "There is no folder"),
        (["-i", "prompts.jsonl", "-o", "."], "`--output` must be a file, but `.` is a folder"),
        (["-i", "prompts.jsonl", "-o", "prompts.jsonl"], "`--output` is the file of `--input`"),
        (["-i", "prompts.jsonl"], "pass --input and --output"),
        (["-o", "answers.jsonl"], "pass --input and --output"),
        (["--force"], "pass --input and --output"),
        (["a", "-i", "prompts.jsonl", "-o", "a"], "`PROMPTS` cannot be combined with --input and --output"),
        (["-i", "prompts.jsonl", "-o", "a", "--infill"], "`--infill` cannot be combined with --input"),
        (["-i", "prompts.jsonl", "-o", "a", "--seed", str(2**64 - 5)], "`--seed` must be from"),
        (["-i", "prompts.jsonl", "-o", "a", "--json"], "`--json` cannot be combined with --input"),
        (["-i", "prompts.jsonl", "-o", "a", "--cache", "dual", "--freeze-prompt"], "`freeze_prompt` has no meaning"),
    ],
)
def test_a_wrong_call_is_one_line_on_stderr(folder, arguments, message):
    Path("empty.jsonl").write_text("\n \n")
    Path("bytes.jsonl").write_bytes(b"\xff\n")
    assert_fails(CliRunner().invoke(app, ["generate", "-m", str(FOLDER), *arguments], env={"COLUMNS": "200"}), message)
    assert not Path("a").exists()
