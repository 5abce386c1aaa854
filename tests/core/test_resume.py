"""Laws of the record file: no kill loses or repeats a record, and records of another run are never taken."""

import copy
import json
from pathlib import Path

import pytest

from llada_core.resume import RecordFile, write_whole

SETTINGS = {
    "input": {"name": "p", "digest": "1"},
    "checkpoint": {"name": "m", "digest": "2"},
    "options": {"steps": 3, "lengths": (1, 2)},
}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "a.jsonl"


def write(path: Path, *keys, part: str = "", settings=SETTINGS) -> RecordFile:
    file = RecordFile(path, part)
    file.start(settings)
    file.write(*({"key": key, "result": f"of {key}"} for key in keys))
    file.close()
    return file


def keys_of(path: Path) -> list:
    return [json.loads(line)["key"] for line in path.read_text().splitlines()]


def test_a_record_comes_back_as_it_was_written(path):
    results = {"a": 0.1 + 0.2, "b": "é\r\n\u2028\x85", "c": [-1e-300, float("inf")], "d": True}
    RecordFile(path).write(*({"key": key, "result": result} for key, result in results.items()))
    assert {key: record["result"] for key, record in RecordFile(path).find().items()} == results


def test_whatever_byte_a_kill_cuts_at_whole_records_count_and_the_next_ones_follow(path):
    write(path, 1)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole + whole[:size])
        assert list(RecordFile(path).find(SETTINGS)) == [1]
        write(path, 2)
        assert keys_of(path) == [1, 2]


def test_a_run_of_the_same_settings_goes_on_and_one_of_others_is_refused_by_what_differs(path):
    write(path, 1)
    assert RecordFile(path).find(SETTINGS).keys() == {1}
    other = copy.deepcopy(SETTINGS)
    other["options"] = {"steps": 4, "lengths": (1, 2), "cache": "dual"}
    other["input"] = {"name": "q", "digest": "3"}
    message = r"was written by another run: its input was another \(p, now q\); `cache` was None, now 'dual'; `steps` "
    with pytest.raises(ValueError, match=message + "was 3, now 4. Use the same settings to resume it"):
        RecordFile(path).find(other)
    other = copy.deepcopy(SETTINGS)
    other["checkpoint"]["name"] = "elsewhere"
    assert RecordFile(path).find(other).keys() == {1}, "a name does not count"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"input": {}, "options": {}}'])
def test_records_without_readable_settings_are_refused(path, content):
    file = write(path, 1)
    file.settings_path.write_text(content)
    with pytest.raises(ValueError, match=r"`a\.jsonl\.run\.json`, which describes its run, is missing or not readable"):
        RecordFile(path).find(SETTINGS)


def test_an_empty_file_belongs_to_nobody(path):
    path.touch()
    assert RecordFile(path).find(SETTINGS) == {}


def test_overwriting_removes_the_records_of_all_parts(path):
    write(path, 1)
    write(path, 2, part="1")
    file = RecordFile(path)
    file.start({**SETTINGS, "options": {}}, overwrite=True)
    file.close()
    assert sorted(found.name for found in path.parent.iterdir()) == ["a.jsonl", "a.jsonl.run.json"]
    assert path.read_bytes() == b""


@pytest.mark.parametrize("content", ["notes\n", "notes", '{"prompt": "a"}\n', '{"prompt": "a"', "\n"])
def test_overwriting_keeps_what_only_has_the_name_of_a_part(path, content):
    write(path, 1)
    part = path.with_name("a.jsonl.part-1")
    part.write_text(content)
    with pytest.raises(
        ValueError, match=r"a\.jsonl\.part-1` has the name of a part of `a\.jsonl`, but holds other things"
    ):
        RecordFile(path).start(SETTINGS, overwrite=True)
    assert (part.read_text(), keys_of(path)) == (content, [1])


def test_overwriting_removes_a_part_that_was_cut_off_anywhere(path):
    write(path, 1, part="1")
    part = path.with_name("a.jsonl.part-1")
    whole = part.read_bytes()
    for size in range(len(whole)):
        part.write_bytes(whole + whole[:size])
        RecordFile(path).start(SETTINGS, overwrite=True)
        assert not part.exists()


def test_a_record_file_knows_its_own_name_and_those_beside_it(path):
    file = write(path, 1)
    link = path.with_name("link")
    link.hardlink_to(path)
    ours = [path, link, *(path.with_name(f"a.jsonl.{end}") for end in ("run.json", "part-1", "part-12-0", "draft-0"))]
    assert all(file.covers(each) for each in ours)
    others = [path.with_name(name) for name in ("b.jsonl", "a.jsonl.bak", "a.jsonl.part-")]
    assert not any(file.covers(each) for each in others)


def test_two_runs_cannot_write_one_file(path):
    first = RecordFile(path)
    first.start()
    with pytest.raises(BlockingIOError, match=r"Another process is writing to `.*a\.jsonl`; wait for it, or stop it"):
        RecordFile(path).start()
    RecordFile(path, "1").start()
    first.close()
    RecordFile(path).start()


@pytest.mark.parametrize("line", ["no json", "[]", '{"key": "k"}', "3", '{"result": 1}'])
def test_a_line_that_is_not_a_record_is_named(path, line):
    path.write_text(json.dumps({"key": "k", "result": 1}) + f"\n{line}\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:2` is not a record with `key` and `result`; delete the line"):
        RecordFile(path).find()


def test_reading_makes_no_file_and_writing_makes_the_folder(tmp_path):
    file = RecordFile(tmp_path / "new" / "a.jsonl", "123-0")
    assert file.find() == {}
    file.close()
    assert not (tmp_path / "new").exists()
    file.write({"key": 1, "result": 2})
    assert [found.name for found in (tmp_path / "new").iterdir()] == ["a.jsonl.part-123-0"]
    assert RecordFile(tmp_path / "new" / "a.jsonl").find() == {1: {"key": 1, "result": 2}}


def test_putting_in_order_can_be_done_by_several_at_once_and_again(path):
    files = [write(path, 2, 0), write(path, 3, 1, part="1")]
    assert files[0].put_in_order([0, 1, 2, 3, 4]) == 1
    assert keys_of(path) == [2, 0]
    for _ in range(2):
        assert [file.put_in_order([0, 1, 2, 3]) for file in files] == [0, 0]
        assert keys_of(path) == [0, 1, 2, 3]
    assert files[1].find(SETTINGS).keys() == {0, 1, 2, 3}
    assert sorted(found.name for found in path.parent.iterdir()) == ["a.jsonl", "a.jsonl.run.json"]


def test_a_file_is_replaced_as_a_whole(path):
    path.write_text("old")
    write_whole(path, [b"new ", b"text"])
    assert path.read_text() == "new text"
    assert list(path.parent.iterdir()) == [path]
