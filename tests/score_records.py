"""A score record, for the tests of all that reads records."""

from llada_core.records import EvaluationRecord, PublishedScore, Score


def make_record(**fields) -> EvaluationRecord:
    """Make a record; `fields` replace those that it has."""
    known = {
        "name": "GSM8K in blocks",
        "model": {"name": "tiny", "sha256": "ab" * 32, "backend": "llada"},
        "settings": {"task": "gsm8k_cot", "shots": 4, "options": {"steps": 256}},
        "results": {"acc,none": Score(0.5, 0.1), "acc_norm,none": Score(0.25)},
        "seed": 0,
        "started": "2026-11-21T10:00:00+00:00",
        "seconds": 1.5,
        "code": {"version": "0.1.0", "git_commit": None, "is_modified": None},
        "packages": {"torch": "2.13.0"},
        "machine": {"processor": "x"},
        "dataset": "openai/gsm8k",
        "num_questions": 25,
        "published": PublishedScore("acc,none", 0.52, 0.03, "a paper"),
    }
    return EvaluationRecord(**known | fields)
