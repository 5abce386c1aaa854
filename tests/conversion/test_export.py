"""Export to ONNX and OpenVINO: the graphs give the model's logits, and a failed export leaves nothing."""

import re
import runpy
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from llada_cli.main import app
from llada_conversion import export_model, runtimes
from llada_conversion.graphs import Gap, check_gaps
from llada_conversion.runtimes import RUNTIMES, find_problem, optimum_problem, require_packages
from modeling_llada import LLaDAConfig, LLaDAModelLM

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

FOLDER = Path(__file__).parents[1] / "reference" / "checkpoints" / "mha"
BUNDLED = Path(__file__).parents[2] / "checkpoints" / "llada-tiny"
NUM_LAYERS, NUM_HEADS, HEAD_DIM, VOCAB = 2, 4, 16, 512
HAS_OPTIMUM = optimum_problem("onnx") is None


@pytest.fixture(scope="module")
def exported(exported_report):
    """The report of an export of `mha`, and both graphs, opened."""
    runtime, report = exported_report
    engine = RUNTIMES[runtime]
    graphs = (engine.open_graph(report.folder / file) for file in (engine.full_file, engine.block_file))
    return report, *graphs


def batch(num_rows: int, length: int, num_padded: int) -> tuple[Tensor, Tensor]:
    """Ids, and a mask with padding at the left of the last row."""
    ids = torch.randint(VOCAB, (num_rows, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[-1, :num_padded] = 0
    return ids, mask


def assert_same_logits(logits: Tensor, expected: Tensor, mask: Tensor) -> None:
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1, 0), (1, 300, 0), (2, 2, 1), (2, 31, 0), (3, 64, 10), (3, 300, 299)], ids=str)
@torch.no_grad()
def test_the_full_graph_gives_the_logits_of_the_model(exported, tiny_model, shape):
    ids, mask = batch(*shape)
    logits = exported[1]({"input_ids": ids, "attention_mask": mask})["logits"]
    assert_same_logits(logits, tiny_model(ids, attention_mask=mask).logits, mask)


@pytest.mark.parametrize("shape", [(1, 1, 0), (2, 31, 4), (3, 300, 40)], ids=str)
@torch.no_grad()
def test_the_block_graph_without_cached_columns_is_a_full_pass(exported, tiny_model, shape):
    ids, mask = batch(*shape)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": torch.arange(shape[1]).expand_as(ids)}
    inputs |= past(torch.zeros(2 * NUM_LAYERS, shape[0], NUM_HEADS, 0, HEAD_DIM))
    logits = exported[2](inputs)["logits"]
    assert_same_logits(logits, tiny_model(ids, attention_mask=mask).logits, mask)


@pytest.mark.parametrize("block", [(0, 1), (7, 40), (199, 200)], ids=str)
@torch.no_grad()
def test_a_block_beside_the_keys_and_values_of_the_rest_in_any_order_is_a_full_pass(exported, tiny_model, block):
    length, (start, end) = 200, block
    ids, mask = batch(2, length, 5)
    positions = torch.arange(length).expand_as(ids)
    nothing = past(torch.zeros(2 * NUM_LAYERS, 2, NUM_HEADS, 0, HEAD_DIM))
    everything = exported[2]({"input_ids": ids, "attention_mask": mask, "position_ids": positions, **nothing})
    states = torch.stack([everything[f"present.{i}.{k}"] for i in range(NUM_LAYERS) for k in ("key", "value")])
    others = torch.tensor([column for column in range(length) if not start <= column < end]).flip(0)
    inputs = {
        "input_ids": ids[:, start:end],
        "attention_mask": torch.cat((mask[:, others], mask[:, start:end]), dim=1),
        "position_ids": positions[:, start:end],
        **past(states[:, :, :, others]),
    }
    logits = exported[2](inputs)["logits"]
    expected = tiny_model(ids, attention_mask=mask).logits[:, start:end]
    assert_same_logits(logits, expected, mask[:, start:end])


def past(states: Tensor) -> dict[str, Tensor]:
    names = [f"past.{layer}.{kind}" for layer in range(NUM_LAYERS) for kind in ("key", "value")]
    return dict(zip(names, states))


def test_the_report_says_how_far_each_graph_is_from_pytorch_and_who_wrote_it(exported):
    report = exported[0]
    assert [gap.graph for gap in report.gaps] == [
        "full graph",
        "block graph, full pass",
        "block graph, one block",
    ]
    assert all(0 < gap.difference < 2e-4 and gap.agreement == 1 for gap in report.gaps)
    assert report.exporter == "Optimum" if HAS_OPTIMUM else ", without Optimum: `" in report.exporter


def test_an_exported_folder_holds_config_and_tokenizer_but_neither_weights_nor_code(exported):
    files = {path.name for path in exported[0].folder.iterdir()}
    assert files >= {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert not any(name.endswith((".py", ".safetensors")) for name in files)
    assert LLaDAConfig.from_pretrained(exported[0].folder).mask_token_id == 488


def test_without_a_block_graph_there_is_one_graph_less(tmp_path):
    report = export_model(FOLDER, tmp_path / "model", "onnx", with_block_graph=False)
    assert [path.name for path in report.folder.glob("*.onnx")] == ["model.onnx"]
    assert [gap.graph for gap in report.gaps] == ["full graph"]


def test_int8_for_onnx_takes_the_constant_matmuls_but_those_behind_a_gate(tmp_path):
    report = export_model(FOLDER, tmp_path / "model", "onnx", weights="int8", with_block_graph=False)
    counts = Counter(node.op_type for node in onnx.load(report.folder / "model.onnx").graph.node)
    # Per layer: query, key, value, attention output, gate and up are integers; two attention products and `ff_out` are
    # not, nor are the rotary angles. The head is an integer too.
    assert counts["MatMulInteger"] == 6 * NUM_LAYERS + 1
    assert counts["MatMul"] == 3 * NUM_LAYERS + 1


def test_int8_for_onnx_keeps_the_most_probable_tokens_of_a_trained_model(tmp_path):
    report = export_model(BUNDLED, tmp_path / "model", "onnx", weights="int8", with_block_graph=False)
    assert 0.95 < report.gaps[0].agreement < 1


@pytest.mark.skipif(not HAS_OPTIMUM, reason="NNCF comes with the extra `optimum`")
# The gaps that docs/conversion.md states for the bundled weights, less a margin.
@pytest.mark.parametrize("weights, size, agreement", [("int8", 0.27, 0.95), ("int4", 0.22, 0.80)])
def test_openvino_compresses_the_weights_of_a_trained_model(tmp_path, weights, size, agreement):
    report = export_model(BUNDLED, tmp_path / "model", "openvino", weights=weights, with_block_graph=False)
    float32_size = 2 * (BUNDLED / "model.safetensors").stat().st_size
    assert (report.folder / "openvino_model.bin").stat().st_size < size * float32_size
    assert agreement < report.gaps[0].agreement < 1


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_heads_that_share_keys_are_exported(tmp_path, runtime):
    source = shutil.copytree(FOLDER, tmp_path / "source")
    config = LLaDAConfig.from_pretrained(source, n_kv_heads=2)
    torch.manual_seed(0)
    LLaDAModelLM(config).save_pretrained(source)
    report = export_model(source, tmp_path / "model", runtime, with_block_graph=runtime == "onnx")
    assert all(gap.difference < 1e-4 for gap in report.gaps)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_weights_that_one_file_cannot_hold_lie_beside_it(tmp_path, monkeypatch, weights):
    monkeypatch.setattr(runtimes, "LARGEST_FILE", 0)
    monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")  # Optimum's own switch
    report = export_model(FOLDER, tmp_path / "model", "onnx", weights, with_block_graph=False)
    sizes = {path.name: path.stat().st_size for path in report.folder.glob("model.onnx*")}
    assert len(sizes) == 2
    assert sizes.pop("model.onnx") < max(sizes.values())
    assert report.gaps[0].agreement > 0.8


def test_the_command_exports_and_says_how_far_the_graphs_are_from_pytorch(tmp_path):
    arguments = ["export", "onnx", str(FOLDER), str(tmp_path / "model"), "--no-block-graph"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    first, second, last = result.stdout.splitlines()
    assert first.startswith(
        "Exported by Optimum" if HAS_OPTIMUM else "Exported by torch.onnx.export, without Optimum: "
    )
    assert re.fullmatch(
        r"full graph: logits within \d\.\de-\d+ of PyTorch, 100\.00% of the most .* tokens equal", second
    )
    assert last == f"Exported model: {tmp_path / 'model'}"
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "pass `--force` to replace it" in again.stderr


def test_the_file_that_optimum_imports_never_raises(monkeypatch):
    """Without Optimum, or in any other trouble, all its commands would fail."""
    path = Path(__file__).parents[2] / "optimum" / "commands" / "register" / "register_llada.py"
    for argv in (["optimum-cli", "export", "onnx"], ["optimum-cli", "env"], ["optimum-cli"]):
        monkeypatch.setattr("sys.argv", argv)
        assert runpy.run_path(str(path))["REGISTER_COMMANDS"] == []


def test_a_failed_export_leaves_nothing(tmp_path):
    source = shutil.copytree(FOLDER, tmp_path / "source")
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(Exception, match=r"expected|EOF|key"):
        export_model(source, tmp_path / "out" / "model", "onnx", with_block_graph=False)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_existing_folder_is_replaced_only_by_force(tmp_path):
    target = shutil.copytree(FOLDER, tmp_path / "model")
    with pytest.raises(FileExistsError, match="`--force`"):
        export_model(FOLDER, target, "onnx")
    export_model(FOLDER, target, "onnx", with_block_graph=False, force=True)
    assert not (target / "model.safetensors").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("tflite",), "`runtime` must be one of onnx, openvino, got 'tflite'"),
        (("onnx", "int4"), "`weights` must be one of float32, int8 for onnx, got 'int4'"),
        (("openvino", "fp8"), "`weights` must be one of float32, int8, int4 for openvino, got 'fp8'"),
    ],
)
def test_unknown_runtimes_and_weights_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_model(FOLDER, tmp_path / "model", *arguments)


def test_a_graph_with_other_logits_is_refused():
    close, far = Gap("full graph", 9e-5, 1.0, 1e-4), Gap("block graph", float("nan"), 0.5, 1e-4)
    check_gaps([close])
    with pytest.raises(ValueError, match=r"The block graph must give the model's logits to 1.0e-04, got a difference"):
        check_gaps([close, far])


REQUIREMENTS = ['optimum-onnx==0.1.*; extra == "optimum"', 'transformers<4.58,>=4.57.6; extra == "optimum"', "torch>=2"]


@pytest.mark.parametrize(
    "versions, problem",
    [
        ({"optimum-onnx": "0.1.0", "transformers": "4.57.6"}, None),
        ({"transformers": "4.57.6"}, "`optimum-onnx` is not installed"),
        ({"optimum-onnx": "0.2.0", "transformers": "4.57.6"}, r"`optimum-onnx` must be ==0.1.*, got 0.2.0"),
        ({"optimum-onnx": "0.1.0", "transformers": "5.23.0"}, "`transformers` must be <4.58,>=4.57.6, got 5.23.0"),
    ],
)
def test_an_optimum_that_is_missing_or_too_new_is_named(versions, problem):
    assert find_problem(["optimum-onnx", "transformers"], REQUIREMENTS, versions.get) == problem


def test_missing_packages_are_named_with_their_extra():
    require_packages(["json"], extra="onnx")
    with pytest.raises(ImportError, match=r'needs `no_such_module`; install it with: pip install "\.\[onnx\]" in'):
        require_packages(["json", "no_such_module"], extra="onnx")
