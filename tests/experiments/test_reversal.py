"""Laws of the reversal experiment: couplets, questions, intervals, and its short run."""

import json

import pytest
import torch

from experiments import reversal
from experiments.common import Shape, make_model, mean_interval
from experiments.reversal import (
    ANTHOLOGIES,
    BY_SEED,
    FOUND,
    MASK,
    NEXT,
    PADDING,
    POEM,
    PREVIOUS,
    SEPARATOR,
    Characters,
    Couplet,
    answerable,
    ask,
    checkpoint_steps,
    choose_options,
    find_first_lines,
    flatten,
    infill,
    load_couplets,
    main,
    make_table,
    parse_arguments,
    parse_couplet,
    plot,
    read_package,
    reverse_text,
    split_couplets,
    summarize,
    training_rows,
    values_by_seed,
    write_extract,
)
from llada_core.records import read_record
from tests.helpers import ROOT

RECORD = ROOT / "docs" / "results" / "reversal-5cd1e31a.record.json"

SUN = Couplet("白日依山盡", "黃河入海流")
MILE = Couplet("欲窮千里目", "更上一層樓")
FROST = Couplet("月落烏啼霜滿天", "江楓漁火對愁眠")


@pytest.mark.parametrize(
    "line, couplet",
    [
        ("白日依山盡，黃河入海流。", SUN),
        ("月落烏啼霜滿天，江楓漁火對愁眠。", FROST),
        ("欲窮千里目,更上一層樓", MILE),
        ("前不見古人，後不見來者。念天地之悠悠，獨愴然而涕下！", None),
        ("君不見，黃河之水天上來。", None),
        ("明月幾時有？把酒問青天。", None),
        ("一二三四，五六七八。", None),
    ],
)
def test_a_couplet_is_five_and_five_or_seven_and_seven_characters(line, couplet):
    assert parse_couplet(line) == couplet


def test_the_package_gives_each_couplet_once_whatever_its_nesting(tmp_path):
    nested = {"content": [{"chapter": "x", "paragraphs": [{"subchapter": "y", "paragraphs": ["".join(SUN)]}]}]}
    nested["content"].append({"paragraphs": ["白日依山盡，黃河入海流。", "長句，不是。", "欲窮千里目，更上一層樓。"]})
    for name, poems in zip(ANTHOLOGIES, (nested, [{"paragraphs": ["白日依山盡，黃河入海流。"]}], [])):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(poems), encoding="utf-8")
    assert read_package(tmp_path) == [SUN, MILE]


def test_a_folder_without_the_package_is_named_with_the_way_to_get_it(tmp_path):
    with pytest.raises(ValueError, match=r"`folder` must hold `dist/mengxue.*npm pack chinese-poetry@2\.0\.1"):
        read_package(tmp_path)


def test_an_extract_reads_back_as_it_was_written(tmp_path):
    write_extract([SUN, FROST], tmp_path / "couplets.json")
    assert load_couplets(tmp_path / "couplets.json") == [SUN, FROST]


def test_the_bundled_extract_holds_the_three_anthologies():
    couplets = load_couplets()
    assert len(couplets) == len(set(couplets)) == 2341
    assert couplets[0] == Couplet("寥落古行宮", "宮花寂寞紅")
    assert {SUN, MILE, FROST} <= set(couplets)
    assert {len(line) for couplet in couplets for line in couplet} == {5, 7}


def test_couplets_that_share_a_line_have_no_single_answer():
    variant = Couplet(SUN.first, "黃河入海來")
    assert answerable([SUN, variant, MILE]) == [MILE]


def test_a_row_is_task_line_separator_line():
    characters = Characters([SUN, MILE])
    row = characters.row(NEXT, *SUN)
    assert len(row) == 12 and (row[0], row[6]) == (NEXT, SEPARATOR)
    assert row[1:6] == characters.encode(SUN.first) and row[7:] == characters.encode(SUN.second)
    # 20 characters, none twice, after the special tokens.
    assert characters.vocab_size == 6 + 20 and min(row[1:6] + row[7:]) >= 6


def test_taught_and_tested_couplets_are_disjoint_and_only_the_taught_are_asked_in_training():
    couplets = [SUN, MILE, FROST, Couplet(SUN.first, "黃河入海來")]
    taught, tested = split_couplets(couplets, 0.5, seed=0)
    assert len(taught) == len(tested) == 1 and set(taught) | set(tested) == {MILE, FROST}
    characters = Characters(couplets)
    rows = training_rows(characters, couplets, taught)
    assert [row[0] for row in rows] == [POEM, POEM, POEM, POEM, NEXT, PREVIOUS]
    assert rows[5] == characters.row(PREVIOUS, taught[0].second, taught[0].first)


def test_reversed_text_reads_the_poem_from_its_end():
    assert reverse_text([SUN]) == [Couplet("流海入河黃", "盡山依日白")]


@pytest.mark.parametrize("kind", ["llada", "autoregressive"])
def test_a_model_that_has_learnt_one_couplet_by_heart_answers_it(kind):
    """A model whose head always says the same character is right about a line of that character, and no other."""
    couplet, other = Couplet("山山山山山", "山山山山山"), Couplet("山山山山山", "山山山山水")
    characters = Characters([other])
    model = make_model(kind, Shape(32, 1), characters.vocab_size, 12, MASK, PADDING, seed=0).eval()
    # The embedding that is also the head points one way for 山 and the other way for the rest.
    [mountain] = set(characters.encode(couplet.first))
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter is not weight and parameter.ndim > 1:
                parameter.zero_()
        weight.fill_(0.1)
        weight[mountain] = 1.0
    for direction in ("next", "previous"):
        assert ask(model, characters, [couplet, other], direction) == {"next": 0.5, "previous": 1.0}[direction]
        if kind == "llada":
            assert infill(model, characters, [couplet, other], direction) == {"next": 0.5, "previous": 1.0}[direction]


@pytest.mark.parametrize("kind", ["llada", "autoregressive"])
def test_a_first_line_without_rivals_is_found(kind):
    characters = Characters([SUN])
    model = make_model(kind, Shape(32, 1), characters.vocab_size, 12, MASK, PADDING, seed=0).eval()
    assert find_first_lines(model, characters, [SUN], [SUN], num_candidates=10) == 1.0


def test_the_first_line_of_the_most_probable_poem_is_found():
    """A model whose head always says the same character is right about the line made of it, and wrong elsewhere."""
    same, other = Couplet("山山山山山", "水水水水水"), Couplet("水水水水水", "水水水水水")
    characters = Characters([same])
    model = make_model("autoregressive", Shape(32, 1), characters.vocab_size, 12, MASK, PADDING, seed=0).eval()
    [mountain] = set(characters.encode(same.first))
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter is not weight and parameter.ndim > 1:
                parameter.zero_()
        weight.fill_(0.1)
        weight[mountain] = 1.0
    assert find_first_lines(model, characters, [same, other], [same, other], num_candidates=2) == 0.5


def test_checkpoints_lie_in_the_last_tenth_and_end_with_the_last_step():
    assert checkpoint_steps(1000, 3) == [900, 950, 1000]
    assert checkpoint_steps(1000, 1) == [1000]
    assert checkpoint_steps(5, 2) == [4, 5]


def make_outcomes():
    """Two seeds, two checkpoints; the seeds' means are 0.2 and 0.4 for every question, 0 and 0 for `previous`."""
    outcomes: dict[str, list] = {model: [] for model in reversal.MODELS}
    for found in outcomes.values():
        for shares in [(0.1, 0.3), (0.3, 0.5)]:
            numbers = [{"next": s, "previous": 0.0, "infill next": s, "infill previous": s} for s in shares]
            found.append({"checkpoints": numbers, "taught": numbers[1], "first_line_found": 1.0, "num_parameters": 7})
    return outcomes


def test_scores_average_over_checkpoints_and_spread_over_seeds():
    scores = summarize(make_outcomes())
    found = scores["LLaDA, asked"]["next"]
    assert found.mean == pytest.approx(0.3)
    # Standard deviation 0.2 / sqrt(2), of the mean 0.1; Student's t with one degree of freedom is 12.706.
    assert found.standard_error == pytest.approx(0.1)
    assert found.half_width == pytest.approx(1.2706, rel=1e-4)
    assert scores["autoregressive, asked"]["previous"] == (0.0, 0.0, 0.0)
    assert FOUND not in scores["LLaDA, poem filled in"]
    assert flatten(scores)["LLaDA, poem filled in: previous"].mean == pytest.approx(0.3)


def test_the_table_shows_the_published_row():
    table = make_table(summarize(make_outcomes()))
    assert "| LLaDA 8B Instruct (published) | 51.8 | 45.6 |" in table
    assert "| LLaDA, asked | 30.0 ± 127.1 | 0.0 ± 0.0 |" in table


def test_a_figure_shows_each_seed_that_a_record_has_and_the_standard_error_of_the_others():
    values = values_by_seed(make_outcomes())
    assert values["LLaDA, asked: next"] == pytest.approx([0.2, 0.4])
    record = read_record(RECORD)
    known = record.remarks[BY_SEED]
    left, right = plot(record).axes
    assert len(left.patches) == 6 and len(right.patches) == 8
    points = [line.get_ydata() for line in right.lines if line.get_marker() == "o"]
    assert sorted(map(tuple, points)) == sorted(tuple(100 * value for value in values) for values in known.values())
    # All that is drawn lies inside the frame: no interval is cut off.
    heights = [float(height) for line in right.lines for height in line.get_ydata()]
    assert min(heights) >= 0 and max(heights) <= right.get_ylim()[1]


def test_the_values_of_the_committed_record_give_its_means_and_errors():
    record = read_record(RECORD)
    for name, values in record.remarks[BY_SEED].items():
        score = record.results[name]
        assert mean_interval(values)[:2] == pytest.approx((score.value, score.standard_error), abs=1e-12)


def test_the_command_line_replaces_what_it_names():
    options = choose_options(parse_arguments(["--short", "--epochs", "3"]))
    assert (options.epochs, options.num_couplets) == (3, reversal.SHORT.num_couplets)
    assert choose_options(parse_arguments([])) == reversal.ReversalOptions()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"taught_share": 1.0}, "`taught_share` must lie between 0 and 1, got 1.0"),
        ({"taught_share": 0.0}, "`taught_share` must lie between 0 and 1, got 0.0"),
        ({"num_seeds": 0}, "`num_seeds` must be at least 1, got 0"),
    ],
)
def test_an_option_out_of_range_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        reversal.ReversalOptions(**wrong)


@pytest.mark.slow
def test_the_short_run_shows_the_reversal_curse_and_goes_on_where_it_stopped(tmp_path, capsys):
    main(["--short", "--output", str(tmp_path), "--workers", "1"])
    [record] = tmp_path.glob("*.record.json")
    results = {name: score["value"] for name, score in json.loads(record.read_text())["results"].items()}
    for model in ("LLaDA", "autoregressive"):
        assert results[f"{model}, asked: taught previous"] > 0.8, "the question is understood"
        assert results[f"{model}, asked: first line found by likelihood"] > 0.8, "the couplets are known"
    assert results["autoregressive, asked: next"] > 0.8, "forward is learnt"
    assert results["autoregressive, asked: previous"] < 0.1
    assert results["autoregressive on reversed text, asked: previous"] > 0.8
    for direction in ("next", "previous"):
        assert results[f"LLaDA, poem filled in: {direction}"] > 0.8
    assert (tmp_path / "reversal.png").exists()
    shown = capsys.readouterr()
    assert "| autoregressive, asked |" in shown.out
    main(["--short", "--output", str(tmp_path), "--workers", "1"])
    assert "autoregressive" not in capsys.readouterr().err, "nothing is trained twice"
