"""The benchmarks run with tiny sizes, and their JSON holds what the documents quote."""

import copy
import importlib
import importlib.util
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modeling_llada import LLaDAModelLM
from tests.helpers import REFERENCE, run_script

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
CHECKPOINT = REFERENCE / "checkpoints" / "mha"
MACHINE = {"date", "cpu", "cores", "threads", "gpu", "load_average", "python", "torch", "transformers"}
TINY_MODEL = ["--d-model", "32", "--layers", "2", "--heads", "2", "--mlp", "64", "--vocab", "512", "--threads", "1"]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    return run_script(FOLDER / script, *arguments)


def result_of(script: str, path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The JSON that a script writes, checked for what all of them say, and what it prints."""
    done = run(script, "--json", str(path), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(path.read_text(encoding="utf-8"))
    assert set(result["machine"]) == MACHINE
    assert result["command"].startswith("python ") and script in result["command"]
    assert result["settings"]["threads"] == 1
    return result, done.stdout


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a file of the folder, whose files import each other by their bare names."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = {path.stem for path in FOLDER.glob("*.py")}

    def import_file(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield import_file
    for name in names:
        sys.modules.pop(name, None)


# --- generation_speed.py ---------------------------------------------------------------------------------------------


def test_exact_options_give_the_plain_loops_tokens_and_passes_are_counted(tmp_path) -> None:
    sizes = ["--prompt", "9", "--length", "16", "--block", "8", "--steps", "8", "--batch", "2", "--runs", "1"]
    names = "none,prefix,dual+freeze_prompt,suffix_window"
    result, printed = result_of("generation_speed.py", tmp_path / "r.json", *sizes, *TINY_MODEL, "--options", names)
    rows = result["results"]
    assert list(rows) == ["plain loop", *names.split(",")]
    assert rows["none"]["equal_tokens"] is True
    assert [rows[name]["equal_tokens"] for name in names.split(",")[1:]] == [None] * 3
    assert {row["forward_passes"] for row in rows.values()} == {8}
    keys = {"median_seconds", "min_seconds", "max_seconds", "tokens_per_second", "times_faster"}
    assert all(keys < set(row) for row in rows.values())
    assert "| dual+freeze_prompt |" in printed


def test_with_a_temperature_no_row_claims_equal_tokens(tmp_path) -> None:
    sizes = ["--prompt", "4", "--length", "8", "--block", "4", "--steps", "4", "--runs", "1", "--temperature", "0.7"]
    arguments = [*sizes, *TINY_MODEL, "--options", "none", "--dtype", "bfloat16"]
    rows = result_of("generation_speed.py", tmp_path / "r.json", *arguments)[0]["results"]
    assert rows["none"]["equal_tokens"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generation_speed", "--options", "none,nome"], "joined by +, got 'nome'"),
        (["generation_speed", "--length", "48", "--block", "32"], "`--length` must be a multiple of `--block`"),
        (["generation_speed", "--steps", "5"], "and `--steps` of the number of blocks"),
        (["peak_memory", "--tokens", "64"], "`--tokens` must exceed 2 blocks (64), got 64"),
        (["head_and_loss", "--shares", "1,0"], "`--shares` must lie in (0, 1], got [1.0, 0.0]"),
        (["gradient_variance", "--pairs", "1"], "`--pairs` must be at least 2 for a standard error, got 1"),
        (
            ["steps_quality", "--groups", "rules,cashes"],
            "takes rules, measures, remasking, fallback, caches, got cashes",
        ),
    ],
    ids=" ".join,
)
def test_arguments_that_cannot_be_run_are_refused(load, monkeypatch, capsys, arguments, message) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="2"):
        load(arguments[0]).parse_arguments()
    assert message in capsys.readouterr().err


# --- candidates.py ---------------------------------------------------------------------------------------------------


def context(**changes: Any) -> SimpleNamespace:
    """What a harness hands to a factory."""
    values = {
        "state_dict": load_file(CHECKPOINT / "model.safetensors"),
        "config": json.loads((CHECKPOINT / "config.json").read_text()),
        "gen_length": 16,
        "block_length": 8,
        "temperature": 0.0,
        "threshold": None,
    }
    return SimpleNamespace(**{**values, **changes})


@pytest.mark.parametrize(
    ("cache", "columns"), [("none", 6 * 21), ("prefix", 2 * 21 + 4 * 12), ("dual", 2 * 21 + 4 * 8)]
)
def test_a_candidate_gives_generates_tokens_and_counts_its_work(tiny_model, load, cache, columns) -> None:
    prompt = torch.randint(0, 400, (2, 5), generator=torch.Generator().manual_seed(5))
    run_candidate = getattr(load("candidates"), cache)(context())
    options = {"max_new_tokens": 16, "block_length": 8, "stop_at_eos": False, "cache": cache}
    for _ in range(2):  # the counts are those of the last call
        assert torch.equal(run_candidate(prompt, 6), tiny_model.generate(prompt, steps=6, **options))
    # Blocks of 8 in 3 steps commit 3, 3, 2 of the 8, 5 and 2 masks.
    expected = {"nfe": 6, "query_tokens": 2 * columns, "logit_rows": 2 * 2 * (8 + 5 + 2)}
    assert expected.items() <= run_candidate.stats.items()
    assert run_candidate.stats["model_s"] > 0


def test_a_candidate_with_a_threshold_takes_as_many_passes_as_it_needs(load) -> None:
    run_candidate = load("candidates").none(context(threshold=1.0))
    run_candidate(torch.tensor([[5, 6, 7]]), 2)
    assert run_candidate.stats["nfe"] == 16


# --- peak_memory.py --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_peak_of_generation_follows_the_block_and_not_the_length(tmp_path) -> None:
    sizes = [
        "--tokens",
        "96,192",
        "--batch",
        "2",
        "--vocab",
        "40000",
        "--d-model",
        "32",
        "--mlp",
        "32",
        "--threads",
        "1",
    ]
    result, printed = result_of("peak_memory.py", tmp_path / "r.json", *sizes)
    rows = {(row["mode"], row["tokens"], row["block"]): row for row in result["results"]}
    assert set(rows) == {(mode, tokens, 32) for mode in ("plain loop", "none", "dual") for tokens in (96, 192)} | {
        ("none", 192, 16),
        ("dual", 192, 16),
    }
    keys = {"all_logits_mib", "scored_logits_mib", "before_mib", "peak_mib", "added_mib", "added_per_scored_logits"}
    assert all(keys < set(row) for row in rows.values())
    assert rows["none", 192, 32]["all_logits_mib"] == pytest.approx(2 * 192 * 40000 * 4 / 2**20)
    assert rows["none", 192, 32]["scored_logits_mib"] == pytest.approx(2 * 32 * 40000 * 4 / 2**20)
    if sys.platform == "linux":
        assert rows["plain loop", 192, 32]["added_mib"] > 1.6 * rows["plain loop", 96, 32]["added_mib"]
        for mode in ("none", "dual"):
            assert rows[mode, 192, 32]["added_mib"] < 1.4 * rows[mode, 96, 32]["added_mib"]
            assert rows[mode, 192, 32]["added_mib"] < 0.2 * rows["plain loop", 192, 32]["added_mib"]
    assert 'cache="dual"' in printed


# --- head_and_loss.py ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_memory_of_head_and_loss_follows_the_masked_positions(tmp_path) -> None:
    sizes = ["--batch", "4", "--length", "128", "--d-model", "32", "--vocab", "40000", "--shares", "1,0.25"]
    result, printed = result_of("head_and_loss.py", tmp_path / "r.json", *sizes, "--runs", "1", "--threads", "1")
    rows = {(row["mode"], row["share"]): row for row in result["results"]}
    plain, cut = rows["all positions", 0.25], rows["masked ones", 0.25]
    assert set(rows) == {(mode, share) for mode in ("all positions", "masked ones") for share in (1.0, 0.25)}
    assert cut["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert (plain["logits_mib"], cut["logits_mib"]) == (512 * 40000 * 4 / 2**20, 128 * 40000 * 4 / 2**20)
    assert plain["times_faster"] == plain["times_less_memory"] == 1
    assert len(cut["seconds"]) == 1 and cut["median_seconds"] > 0
    if sys.platform == "linux":
        assert cut["added_mib"] < 0.5 * rows["masked ones", 1.0]["added_mib"]
        assert cut["times_less_memory"] > 1.5
    assert "| masked ones" in printed


# --- preference_memory.py --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_memory_of_a_preference_step_does_not_grow_with_the_levels_and_its_gradient_is_the_same(tmp_path) -> None:
    sizes = ["--levels", "1,8", "--pairs", "2", "--tokens", "128", "--d-model", "64", "--layers", "4", "--heads", "2"]
    sizes += ["--mlp", "128", "--vocab", "2048", "--threads", "1"]
    result, printed = result_of("preference_memory.py", tmp_path / "r.json", *sizes)
    rows = {(row["way"], row["levels"]): row for row in result["results"]}
    kept, again = rows["all activations", 8], rows["level by level", 8]
    assert again["added_mib"] < 1.5 * rows["level by level", 1]["added_mib"] < kept["added_mib"]
    assert again["gradient_norm"] == pytest.approx(kept["gradient_norm"], rel=1e-6)
    assert "level by level" in printed


# --- gradient_variance.py --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_way_to_draw_noise_is_compared_with_independent_masks(tmp_path) -> None:
    arguments = ["--texts", "2", "--pairs", "2", "--threads", "1"]
    result, printed = result_of("gradient_variance.py", tmp_path / "r.json", *arguments)
    rows = result["results"]
    options = ("exact_count", "low_discrepancy", "complementary_masks")
    assert {tuple(row[option] for option in options) for row in rows} == set(product((False, True), repeat=3))
    assert not any(rows[0][option] for option in options)
    assert rows[0]["gradient_variance_ratio"] == rows[0]["loss_variance_ratio"] == 1
    assert all(row["gradient_variance"] > 0 and row["loss_variance"] > 0 for row in rows)
    assert "| exact_count, low_discrepancy " in printed


def test_the_variance_of_a_gradient_is_the_one_over_all_draws(tiny_model, load) -> None:
    script = load("gradient_variance")
    ids = torch.randint(0, 400, (1, 3), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids, "example_id": torch.tensor([0]), "lengths": torch.tensor([3])}
    way = (True, True, True)
    gradients = torch.stack([script.gradient(tiny_model, batch, way, step)[1] for step in range(200)])
    result = script.measure(tiny_model, batch, way, 100)
    error = 4 * result["gradient_variance_error"]
    assert result["gradient_variance"] == pytest.approx(gradients.var(0).sum().item(), abs=error)
    assert 0 < error < 0.5 * result["gradient_variance"]


# --- steps_quality.py ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_quality_benchmark_measures_every_way_to_decode_and_draws_a_plot(tmp_path) -> None:
    picture = tmp_path / "pictures" / "quality.png"
    arguments = ["--quick", "--threads", "1", "--model", str(CHECKPOINT), "--plot", str(picture)]
    result, printed = result_of("steps_quality.py", tmp_path / "r.json", *arguments)
    rows = result["results"]
    assert rows[0]["label"] == "one token per pass"
    assert {row["group"] for row in rows} == {"rules", "measures", "remasking", "fallback", "caches"}
    rules = {"schedule", "threshold", "factor", "frechet", "entropy_bound"}
    assert rules == {row["line"] for row in rows if row["group"] == "rules"}
    numbers = {"mean", "standard_error", "difference", "difference_standard_error"}
    for row in rows:
        assert set(row["answering"]) == {"right", "fitting", "passes"}
        assert set(row["answering"]["right"]) == numbers
        assert row["answering"]["right"]["mean"] <= row["answering"]["fitting"]["mean"]
        if "infilling" in row:
            assert set(row["infilling"]) == {"accuracy", "consistency", "passes_per_token"}
    assert rows[0]["infilling"]["accuracy"]["difference"] == 0
    assert rows[0]["infilling"]["passes_per_token"]["mean"] == 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "| one token per pass" in printed


def test_half_of_each_rows_tokens_are_masked_and_no_padding(load) -> None:
    attention_mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]]).bool()
    mask_half = load("quality_tasks").mask_half
    is_masked = mask_half(attention_mask, seed=0)
    assert is_masked.sum(-1).tolist() == [3, 4]
    assert not (is_masked & ~attention_mask).any()
    assert torch.equal(is_masked, mask_half(attention_mask, seed=0))
    assert not torch.equal(is_masked, mask_half(attention_mask, seed=1))


def test_consistency_is_the_mean_log_probability_of_the_filled_tokens(load) -> None:
    """A model that gives every token a probability of one quarter, whatever it sees."""

    def model(ids, attention_mask, position_ids, logits_positions):
        assert ((ids == 9) == logits_positions).all()
        return SimpleNamespace(logits=torch.zeros(int(logits_positions.sum()), 4))

    model.config = SimpleNamespace(mask_token_id=9)
    ids = torch.tensor([[0, 1, 2, 3, 0, 1]])
    is_filled = torch.tensor([[True, False, True, True, True, True]])
    value = load("quality_tasks").consistency(model, ids, torch.ones_like(ids).bool(), is_filled)
    assert torch.allclose(value, torch.tensor([0.25]).log())


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        (" Paris.", True),
        ("paris", True),
        (" Parish.", False),
        (" the capital of Spain.", False),
        (" the Paris of today", True),
        (" a kid.", True),
        (" kid", True),
        (" Washington, D.C. It", True),
        ("", False),
    ],
)
def test_an_answer_counts_if_the_continuation_begins_with_it_whole(load, text, is_right) -> None:
    assert load("quality_tasks").is_answer(text, ["Paris", "a kid", "Washington, D.C"]) is is_right


def test_differences_from_the_reference_are_taken_item_by_item(load) -> None:
    values, reference = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.0, 1.0, 5.0])
    numbers = load("quality_tasks").summary(values, reference)
    assert numbers["mean"] == 3
    assert numbers["standard_error"] == pytest.approx((7 / 3) ** 0.5, abs=1e-5)
    assert (numbers["difference"], numbers["difference_standard_error"]) == (1, 0)


def test_more_items_than_the_files_hold_are_refused(load) -> None:
    with pytest.raises(ValueError, match=r"`facts\.jsonl` holds 128 lines, got 129"):
        load("quality_tasks").read_lines("facts.jsonl", 129)


# --- the data --------------------------------------------------------------------------------------------------------


def test_the_committed_data_are_small_and_of_the_named_sources(load) -> None:
    read_lines = load("quality_tasks").read_lines
    texts, facts = read_lines("heldout.jsonl", 96), read_lines("facts.jsonl", 128)
    kinds = json.loads((FOLDER / "kinds.json").read_text(encoding="utf-8"))
    assert [text["source"] for text in texts] == ["wordnet", "bible"] * 48
    assert len({text["text"] for text in texts}) == 96
    assert all(set(fact["answers"]) <= set(kinds[fact["kind"]]) for fact in facts)
    assert (FOLDER / "heldout.jsonl").stat().st_size < 60_000
    assert (FOLDER / "facts.jsonl").stat().st_size < 20_000


def test_facts_are_sentences_cut_before_their_answer(load, monkeypatch) -> None:
    script = load("extract_quality_data")
    monkeypatch.setattr(script, "FACTS", {"capital": (r"(The capital of .+ is) (.+)\.", 1)})
    texts = ["The capital of France is Paris.", "Paris is the capital of France.", "The capital of France is Paris."]
    documents = [{"text": text, "source": "quiz"} for text in texts]
    documents.append({"text": "The capital of Narnia is Cair Paravel.", "source": "wordnet"})
    lines, kinds = script.facts(documents)
    assert lines == [{"prompt": "The capital of France is", "answers": ["Paris"], "kind": "capital"}]
    assert kinds == {"capital": ["Paris"]}


def test_passages_are_whole_sentences_without_the_heading(load, monkeypatch) -> None:
    script = load("extract_quality_data")
    monkeypatch.setattr(script, "MIN_CHARACTERS", 10)
    monkeypatch.setattr(script, "MAX_CHARACTERS", 20)
    chapter = "Mark 2\n\nHe sat down. He rose. They all followed him to the house. Be so."
    assert script.passages(chapter) == ["He sat down."]


# --- compare_llama_cpp.py --------------------------------------------------------------------------------------------


def test_the_plain_loop_that_drives_llama_cpp_answers_as_generate_does(load) -> None:
    script = load("compare_llama_cpp")
    model = LLaDAModelLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    prompt = torch.randint(10, 400, (1, 9), generator=torch.Generator().manual_seed(0))
    answer = script.unmask_greedily(model, prompt, 8)
    assert answer.shape == (1, 17) and (answer != model.config.mask_token_id).all()
    assert torch.equal(answer, script.generate(model, prompt, 8))


def test_logits_are_compared_over_prompt_and_masks(load) -> None:
    script = load("compare_llama_cpp")
    model = LLaDAModelLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    prompt = torch.tensor([[7, 11, 13]])
    same = script.compare_logits(model, model, prompt, num_masks=2)
    assert (same["largest_difference"], same["same_best_token"]) == (0.0, 1.0)
    # One of five positions has another best token, and a logit that is 9 higher than the best.
    best = model(torch.tensor([[7, 11, 13, 488, 488]])).logits.max().item()
    other = copy.deepcopy(model)

    def raise_one(_module: Any, _inputs: Any, output: Any) -> None:
        output.logits[0, 1, 3] = best + 9

    other.register_forward_hook(raise_one)
    gap = script.compare_logits(model, other, prompt, num_masks=2)
    assert gap["same_best_token"] == 0.8 and gap["largest_difference"] >= 9


def test_without_llama_cpp_the_script_says_how_to_install_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    done = run("compare_llama_cpp.py")
    assert done.returncode == 1
    assert "llama-cpp-python is not installed: pip install llama-cpp-python" in done.stderr


@pytest.mark.slow
def test_llama_cpp_reads_our_file_as_we_do(tmp_path) -> None:
    pytest.importorskip("llama_cpp")
    sizes = ["--weights", "f32", "--length", "8", "--texts", "8", "--runs", "1"]
    (row,) = result_of("compare_llama_cpp.py", tmp_path / "r.json", *sizes)[0]["results"]
    assert row["same_tokens"] == row["texts"] == 13
    assert row["same_answer"] is True and row["same_best_token"] == 1.0
    assert row["largest_difference"] < 1e-4


# --- experts_speed.py ------------------------------------------------------------------------------------------------


@pytest.mark.newest_only
def test_every_way_to_run_experts_gives_the_same_result(tmp_path) -> None:
    sizes = ["--width", "32", "--hidden", "16", "--tokens", "8", "--runs", "1", "--threads", "1"]
    result, printed = result_of("experts_speed.py", tmp_path / "r.json", *sizes)
    assert [row["experts"] for row in result["results"]] == 2 * ["eager", "grouped_mm", "batched_mm"]
    assert all(row["largest_difference"] < 1e-5 and row["ms"] > 0 for row in result["results"])
    assert "| forward and backward |" in printed


# --- quantization.py -------------------------------------------------------------------------------------------------


def test_float32_is_what_quantised_models_are_compared_with(tmp_path) -> None:
    arguments = ["--model", str(CHECKPOINT), "--schemes", "float32,bfloat16", "--texts", "3", "--length", "4"]
    result, printed = result_of("quantization.py", tmp_path / "r.json", *arguments)
    exact, half = result["results"]
    assert (exact["same_best_token"], exact["mean_kl"], exact["same_greedy_tokens"]) == (1.0, 0.0, 1.0)
    assert 0 < half["mean_kl"] < 0.01 and half["megabytes"] <= exact["megabytes"]
    assert exact["bound"] == pytest.approx(half["bound"], abs=0.1)
    assert "| bfloat16 |" in printed


def test_an_unknown_scheme_and_a_missing_package_are_named(monkeypatch) -> None:
    done = run("quantization.py", "--model", str(CHECKPOINT), "--schemes", "int3", "--texts", "1", "--length", "1")
    assert done.returncode == 1 and "`--schemes` must be a list of float32, bfloat16," in done.stderr
    if importlib.util.find_spec("torchao") is None:
        done = run("quantization.py", "--model", str(CHECKPOINT), "--schemes", "int8-weights", "--texts", "1")
        assert done.returncode == 1 and "`int8-weights` needs torchao: pip install torchao" in done.stderr


# --- serving.py ------------------------------------------------------------------------------------------------------


def test_every_way_to_serve_answers_every_request_and_is_timed(tmp_path) -> None:
    arguments = ["--requests", "2", "--concurrency", "2", "--batch", "2", "--threads", "1"]
    result, printed = result_of("serving.py", tmp_path / "r.json", *arguments)
    ways = ["one at a time", "static batches", "continuous", "continuous, padded"]
    assert [row["way"] for row in result["results"]] == ways
    for row in result["results"]:
        assert 0 < row["p50_s"] <= row["p95_s"]
        assert row["requests_per_second"] > 0
    assert "| 2, continuous" in printed


def test_timed_passes_bound_what_batching_gives(tmp_path) -> None:
    found = result_of("serving.py", tmp_path / "r.json", "--passes", "--threads", "1")[0]["passes"]
    assert found["mean_columns"] == 62  # prompts of 30 on average, and blocks that end after 16, 32, 48 or 64 tokens
    assert 1 < found["bound_at_16"] < 16
    assert found["cpu_ms"]["1 x 32"] < found["cpu_ms"]["16 x 128"]


def test_a_flood_is_answered_or_refused_and_the_process_goes_on(tmp_path) -> None:
    pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
    found = result_of("serving.py", tmp_path / "r.json", "--flood", "300", "--threads", "1")[0]["flood"]
    assert found["statuses"].keys() <= {"200", "429"} and sum(found["statuses"].values()) == 300
    assert found["afterwards"] == {"200": 1}


def test_a_soak_loses_no_request(tmp_path) -> None:
    pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
    soak = result_of("serving.py", tmp_path / "r.json", "--soak", "60", "--threads", "1")[0]["soak"]
    assert (soak["lost"], soak["left_over"], len(soak["memory_MiB"])) == (0, 0, 10)
    assert soak["answered"] + soak["refused"] + soak["left"] == 60
