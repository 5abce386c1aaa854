"""Records and digests: what goes into a record comes out, and a checkpoint is known by its bytes."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from llada_core.digests import checkpoint_hash, file_digest, json_digest
from llada_core.records import (
    PublishedScore,
    environment,
    processor_name,
    read_record,
    read_records,
    write_record,
)
from tests.score_records import make_record

ROOT = Path(__file__).resolve().parents[2]
# The start of a record's file, to which name, settings and results are missing.
FIELDS = (
    '{"format": 1, "model": {}, "seed": 0, "started": "", "seconds": 0, "code": {}, "packages": {}, "machine": {}, '
)
MHA = ROOT / "tests" / "reference" / "checkpoints" / "mha"


def test_a_record_comes_back_as_it_was_written(tmp_path):
    record = make_record(remarks={"num_truncated": {"loglikelihood": 2}})
    assert read_record(write_record(tmp_path, record)) == record


def test_the_file_says_in_plain_json_whether_the_result_agrees(tmp_path):
    fields = json.loads(write_record(tmp_path, make_record()).read_text())
    assert fields["is_within_tolerance"] is True
    assert fields["results"]["acc,none"] == {"value": 0.5, "standard_error": 0.1}


@pytest.mark.parametrize(
    "published, agrees",
    [(0.53, True), (0.531, False), (0.469, False), (None, None)],
)
def test_a_score_agrees_within_the_tolerance(published, agrees):
    score = None if published is None else PublishedScore("acc,none", published, 0.0300001, "a paper")
    assert make_record(published=score).is_within_tolerance is agrees


def test_the_same_run_overwrites_itself_and_other_settings_do_not(tmp_path):
    write_record(tmp_path, make_record())
    write_record(tmp_path, make_record(seconds=9.0))
    write_record(tmp_path, make_record(seed=1))
    assert [(record.seed, record.seconds) for record in sorted(read_records(tmp_path), key=lambda r: r.seed)] == [
        (0, 9.0),
        (1, 1.5),
    ]
    assert all(path.name.startswith("gsm8k-in-blocks-") for path in tmp_path.iterdir())


def test_a_published_metric_that_was_not_measured_is_refused():
    with pytest.raises(ValueError, match=r"`published` must name a metric of the results .acc,none, .*got 'f1'"):
        make_record(published=PublishedScore("f1", 0.5, 0.1, "a paper"))


@pytest.mark.parametrize("value", [Path("x"), float("nan")])
def test_a_setting_that_json_cannot_hold_is_refused(value, tmp_path):
    with pytest.raises(ValueError, match="The record of `GSM8K in blocks` must hold JSON values only"):
        write_record(tmp_path, make_record(settings={"a": value}))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not JSON"),
        ("[]", "is not an evaluation record of format 1"),
        ('{"format": 2}', "is not an evaluation record of format 1"),
        ('{"format": 1, "results": {}, "colour": 1}', "are not those of format 1: .*colour"),
        ('{"format": 1}', "are not those of format 1: 'results'"),
        ("[" * 100_000, "is not JSON"),
        ('{"format": 1, "results": [1]}', "are not those of format 1"),
        (
            FIELDS + '"name": "a", "settings": {}, "results": {"acc": {"value": "x"}}}',
            "are not those of format 1: a `value` is not a number",
        ),
        (FIELDS + '"name": "a", "settings": {}, "results": {"acc": {"value": null}}}', "a `value` is not a number"),
        ('{"format": 1, "results": {}}', "are not those of format 1: .*missing"),
        (FIELDS + '"name": 5, "settings": {}, "results": {}}', "`name` must be text and `settings` an object"),
    ],
)
def test_what_is_no_record_is_refused(text, message, tmp_path):
    (tmp_path / "a.record.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_record(tmp_path / "a.record.json")


def test_a_place_without_records_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere` does not exist; name a record"):
        read_records(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no records .*; name an evaluation's output folder"):
        read_records(tmp_path)


def test_a_checkpoint_is_known_by_its_bytes_wherever_it_lies(tmp_path):
    known = checkpoint_hash(MHA)
    copy = shutil.copytree(MHA, tmp_path / "copy")
    (copy / "README.md").write_text("A card does not change the model.")
    assert checkpoint_hash(copy) == known
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert checkpoint_hash(copy) != known


def test_the_configuration_belongs_to_the_checkpoint(tmp_path):
    copy = shutil.copytree(MHA, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rope_theta": 1.0}))
    assert checkpoint_hash(copy) != checkpoint_hash(MHA)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no weights to hash"):
        checkpoint_hash(tmp_path)


def test_a_part_of_a_file_has_the_digest_of_its_bytes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert file_digest(path) == hashlib.sha256(b"0123456789").hexdigest()
    assert file_digest(path, 2, 5) == hashlib.sha256(b"234").hexdigest()
    assert file_digest(path, 4) == hashlib.sha256(b"456789").hexdigest()


def test_the_digest_of_a_value_depends_on_all_but_the_order_of_keys():
    digest = json_digest(["a", {"x": 1, "y": 2}, [1, 2]])
    assert digest == json_digest(["a", {"y": 2, "x": 1}, (1, 2)])
    others = (["b", {"x": 1, "y": 2}, [1, 2]], ["a", {"x": 1}, [1, 2]], ["a", {"x": 1, "y": 2}, [12]])
    assert digest not in {json_digest(other) for other in others}


def test_the_environment_fills_a_record():
    found = environment()
    assert found.keys() == {"code", "packages", "machine"}
    assert found["packages"]["torch"] == torch.__version__ or found["packages"]["torch"] in torch.__version__
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["processor"] == processor_name() != ""
    dataclasses.replace(make_record(), **found)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")
def test_a_checkout_is_known_by_its_commit():
    answer = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert environment()["code"]["git_commit"] == answer.stdout.strip()
