"""Laws of the experiment on preferences: its task, its noise, and a short run."""

import json

import pytest
import torch

from experiments import preferences, redraw

pytestmark = pytest.mark.newest_only


def test_the_preferred_answer_has_fewer_inversions_and_both_are_orders_of_the_prompt():
    assert [preferences.num_inversions(digits) for digits in ([1, 2, 3], [3, 2, 1], [2, 2, 1])] == [0, 3, 2]
    pairs = preferences.draw_pairs(50, 6, seed=0)
    assert pairs == preferences.draw_pairs(50, 6, seed=0) != preferences.draw_pairs(50, 6, seed=1)
    assert len({tuple(pair.prompt) for pair in pairs}) == 50
    others = preferences.draw_pairs(50, 6, seed=0, without=pairs)
    assert not {tuple(pair.prompt) for pair in pairs} & {tuple(pair.prompt) for pair in others}
    for pair in pairs:
        assert sorted(pair.chosen) == sorted(pair.rejected) == sorted(pair.prompt)
        assert preferences.num_inversions(pair.chosen) < preferences.num_inversions(pair.rejected)


def test_the_tokenizer_gives_the_rows_of_the_base_model():
    tokenizer, pair = preferences.make_tokenizer(), preferences.draw_pairs(1, 4, seed=0)[0]
    [row] = preferences.as_dataset([pair])
    ids = tokenizer(row["prompt"] + row["chosen"] + "<eos>")["input_ids"]
    assert ids == preferences.row_of(pair.prompt, pair.chosen)


def test_one_level_gives_all_masks_of_a_row_the_same_size_and_n_levels_do_not():
    ids, labels, numbers = preferences.make_batch(preferences.draw_pairs(8, 8, seed=0))
    ways = preferences._ways(ids, labels, numbers)
    sizes = {name: torch.stack([noisy.is_masked.sum(-1) for noisy in draw(4, 0)]) for name, draw in ways.items()}
    assert (sizes["one level, n masks"] == sizes["one level, n masks"][0]).all()
    assert (sizes["n levels, one mask each"].float().var(0) > 0).float().mean() > 0.8
    assert (sizes["n stratified levels, one mask each"].diff(dim=0) < 0).all()


@pytest.mark.slow
def test_the_short_run_writes_table_figure_and_record_and_goes_on_where_it_was(tmp_path, capsys):
    arguments = ["--short", "--workers", "1", "--output", str(tmp_path)]
    preferences.main(arguments)
    table = (tmp_path / "preferences.md").read_text()
    assert "| VRPO: 8 levels, shared |" in table and "| log ratio, shared noise |" in table
    assert (tmp_path / "preferences.png").read_bytes().startswith(b"\x89PNG")
    [record] = tmp_path.glob("*.record.json")
    assert len(json.loads(record.read_text())["results"]) == 4 + 5 * 2
    (tmp_path / "preferences.png").unlink()
    assert redraw.redraw(record).exists()
    lines = (tmp_path / "trainings.jsonl").read_text().splitlines()
    (tmp_path / "trainings.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    capsys.readouterr()
    preferences.main(arguments)
    assert capsys.readouterr().err.count("done after") == 1
    assert (tmp_path / "preferences.md").read_text() == table
