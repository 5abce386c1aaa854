"""Two evaluations side by side."""

import pytest

from llada_core.records import Score
from llada_evaluation.compare import compare_records
from tests.score_records import make_record


def test_a_difference_has_the_error_of_both():
    comparison = compare_records(
        [make_record(results={"acc,none": Score(0.5, 0.03)}, published=None)],
        [make_record(results={"acc,none": Score(0.75, 0.04)}, published=None)],
    )
    (row,) = comparison.scores
    assert row.difference == pytest.approx(0.25)
    assert row.standard_error == pytest.approx(0.05)
    assert comparison.settings == []


def test_what_one_side_lacks_has_no_difference():
    first = [make_record(), make_record(name="Only A")]
    comparison = compare_records(first, [make_record(results={"acc,none": Score(0.5)})])
    rows = {(row.name, row.metric): row for row in comparison.scores}
    assert list(rows) == [
        ("GSM8K in blocks", "acc,none"),
        ("GSM8K in blocks", "acc_norm,none"),
        ("Only A", "acc,none"),
        ("Only A", "acc_norm,none"),
    ]
    assert (rows["GSM8K in blocks", "acc,none"].difference, rows["GSM8K in blocks", "acc,none"].standard_error) == (
        0,
        None,
    )
    assert (rows["Only A", "acc,none"].difference, rows["Only A", "acc,none"].standard_error) == (None, None)


def test_settings_that_differ_are_named_once_with_the_benchmarks():
    names = ("P", "Q")
    first = [make_record(name=name) for name in names]
    second = [
        make_record(name=name, seed=7, settings={"task": "gsm8k_cot", "shots": 4, "options": {"steps": steps}})
        for name, steps in zip(names, (256, 64))
    ]
    differences = {row.name: row[1:] for row in compare_records(first, second).settings}
    assert differences == {"seed": (0, 7, names), "settings.options.steps": (256, 64, ("Q",))}


def test_a_setting_that_only_one_side_has_differs():
    second = make_record(settings={"task": "gsm8k_cot", "shots": 4, "options": {"steps": 256, "cfg_scale": 0.5}})
    (row,) = compare_records([make_record()], [second]).settings
    assert row[:3] == ("settings.options.cfg_scale", None, 0.5)


def test_nothing_in_common_is_refused():
    with pytest.raises(ValueError, match="`A` and `B` must share a benchmark, got P and Q"):
        compare_records([make_record(name="P")], [make_record(name="Q")])


def test_two_records_of_a_benchmark_on_one_side_are_refused():
    with pytest.raises(ValueError, match="`B` must have one record per benchmark, got several of P"):
        compare_records([make_record(name="P")], [make_record(name="P"), make_record(name="P", seed=1)])
