"""Laws of a model in the hands of others: threads, processes, offloading, exports and data types change no token."""

import multiprocessing
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from modeling_llada import LLaDAConfig, LLaDAModelLM

MASK = 199
OPTIONS = {"max_new_tokens": 16, "block_length": 8, "steps": 8}
CACHES = ("none", "prefix", "dual")


def small_model(tied: bool = False) -> LLaDAModelLM:
    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=64,
        n_layers=3,
        n_heads=4,
        n_kv_heads=2,
        mlp_hidden_size=96,
        vocab_size=200,
        weight_tying=tied,
        mask_token_id=MASK,
        eos_token_id=0,
        pad_token_id=0,
        init_fn="normal",
        init_std=0.3,
    )
    return LLaDAModelLM(config).eval()


def prompts(batch: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(1, 190, (batch, length), generator=torch.Generator().manual_seed(5))


def noisy(batch: int = 2, length: int = 9) -> torch.Tensor:
    ids = prompts(batch, length)
    ids[:, ::3] = MASK
    return ids


def tokens_by_cache(model: LLaDAModelLM, **options) -> dict[str, torch.Tensor]:
    return {cache: model.generate(prompts(), cache=cache, **OPTIONS, **options) for cache in CACHES}


def assert_same_tokens(model: LLaDAModelLM, expected: dict[str, torch.Tensor], **options) -> None:
    for cache, tokens in tokens_by_cache(model, **options).items():
        assert torch.equal(tokens, expected[cache]), cache


@pytest.mark.parametrize("pack", [None, False, True])
def test_calls_at_once_answer_as_calls_in_turn(pack) -> None:
    model = small_model()
    if pack and not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        pytest.skip("this CPU has no kernels for packed weights")
    work = [(prompts(1 + number % 3, 4 + number % 5), CACHES[number % 3]) for number in range(32)]

    def answer(job: tuple[torch.Tensor, str]) -> torch.Tensor:
        ids, cache = job
        return model.generate(ids, cache=cache, pack_weights=pack, **OPTIONS)

    in_turn = [answer(job) for job in work]
    with ThreadPoolExecutor(max_workers=8) as pool:
        at_once = list(pool.map(answer, work))
    assert all(torch.equal(one, other) for one, other in zip(at_once, in_turn, strict=True))
    assert not any("forward" in vars(module) for module in model.modules())


def _generate_in_a_child(model: LLaDAModelLM, results: multiprocessing.Queue) -> None:
    # The threads of the parent's pool do not exist in a forked process.
    torch.set_num_threads(1)
    results.put(pickle.dumps(tokens_by_cache(model)))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks safely")
def test_a_forked_process_answers_as_its_parent() -> None:
    model = small_model()
    expected = tokens_by_cache(model)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_generate_in_a_child, args=(model, results))
    child.start()
    tokens = pickle.loads(results.get(timeout=60))
    child.join(60)
    assert child.exitcode == 0
    assert all(torch.equal(tokens[cache], expected[cache]) for cache in CACHES)


@pytest.mark.parametrize("dtype, gap", [(torch.float16, 0.01), (torch.bfloat16, 0.05), (torch.float64, 1e-4)], ids=str)
@torch.no_grad()
def test_a_model_of_another_precision_computes_and_generates_in_it(dtype, gap) -> None:
    model = small_model()
    expected = model(noisy()).logits
    cast = model.to(dtype)
    logits = cast(noisy()).logits
    assert logits.dtype == dtype
    assert (logits - expected).abs().mean() < gap * expected.abs().mean()
    assert all(tokens.shape == (2, 9 + 16) for tokens in tokens_by_cache(cast).values())


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_model_spread_over_memory_and_disk_answers_as_one_in_memory(tied, tmp_path) -> None:
    pytest.importorskip("accelerate")
    model = small_model(tied)
    expected = tokens_by_cache(model)
    model.save_pretrained(tmp_path / "model")
    spread = LLaDAModelLM.from_pretrained(
        tmp_path / "model",
        device_map="auto",
        max_memory={"cpu": 300_000},
        offload_folder=tmp_path / "offload",
        dtype=torch.float32,
    )
    assert "disk" in spread.hf_device_map.values()
    assert_same_tokens(spread, expected)


def test_a_model_offloaded_by_accelerate_answers_as_before() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = small_model()
    expected = tokens_by_cache(model)
    assert_same_tokens(accelerate.cpu_offload(model, execution_device=torch.device("cpu")), expected)


def test_a_checkpoint_dispatched_into_an_empty_model_answers_as_before(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = small_model()
    model.save_pretrained(tmp_path)
    with accelerate.init_empty_weights():
        empty = LLaDAModelLM(model.config)
    loaded = accelerate.load_checkpoint_and_dispatch(empty, tmp_path, device_map={"": "cpu"})
    assert_same_tokens(loaded.eval(), tokens_by_cache(model))


@torch.no_grad()
def test_an_exported_graph_computes_the_same_for_other_shapes() -> None:
    model = small_model()
    rows, columns = torch.export.Dim("rows", max=64), torch.export.Dim("columns", min=2, max=512)
    graph = torch.export.export(model, (noisy(),), dynamic_shapes={"input_ids": {0: rows, 1: columns}})
    assert torch.allclose(graph.module()(noisy(3, 20)).logits, model(noisy(3, 20)).logits, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@torch.no_grad()
def test_a_traced_graph_computes_the_same() -> None:
    model = small_model()
    model.config.return_dict = False
    traced = torch.jit.trace(model, (noisy(),))
    assert torch.allclose(traced(noisy())[0], model(noisy())[0], atol=1e-5)
