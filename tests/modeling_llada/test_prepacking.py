"""Laws of prepacked weights."""

import pytest
import torch
from torch import nn

from modeling_llada import LLaDAConfig, LLaDAModelLM, generate_many
from modeling_llada.prepacking_llada import prepackable_layers, prepacked_weights

OPTIONS = {"max_new_tokens": 16, "block_length": 8, "stop_at_eos": False}


def can_pack() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")


needs_kernels = pytest.mark.skipif(not can_pack(), reason="this CPU has no kernels for packed weights")


def small_model(dtype: torch.dtype = torch.float32) -> LLaDAModelLM:
    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=64,
        n_layers=2,
        n_heads=4,
        mlp_hidden_size=96,
        vocab_size=200,
        mask_token_id=199,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LLaDAModelLM(config).to(dtype).eval()


def prompts(*shape: int) -> torch.Tensor:
    return torch.randint(1, 190, shape, generator=torch.Generator().manual_seed(3))


@needs_kernels
@pytest.mark.parametrize("dtype, gap", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17)], ids=str)
@torch.no_grad()
def test_prepacked_weights_give_the_same_logits_to_rounding(dtype, gap, shape) -> None:
    model, ids = small_model(dtype), prompts(*shape)
    plain = model(ids).logits
    with prepacked_weights(model, True):
        packed = model(ids).logits
    assert packed.dtype == dtype
    assert torch.allclose(packed, plain, atol=gap, rtol=gap)


@needs_kernels
@torch.no_grad()
def test_a_bias_and_rows_of_none_are_served_too() -> None:
    layer = nn.Linear(8, 5)
    states = torch.randn(3, 8)
    plain, empty = layer(states), states[:0]
    with prepacked_weights(nn.Sequential(layer), True):
        assert torch.allclose(layer(states), plain, atol=1e-6)
        assert layer(empty).shape == (0, 5)
        assert layer(states.bfloat16().float()).dtype == torch.float32


@needs_kernels
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_generation_gives_the_same_tokens_with_prepacked_weights(cache) -> None:
    model, ids = small_model(), prompts(2, 9)
    plain = model.generate(ids, cache=cache, pack_weights=False, **OPTIONS)
    assert torch.equal(model.generate(ids, cache=cache, pack_weights=True, **OPTIONS), plain)


@needs_kernels
def test_a_call_leaves_no_packed_weight_behind_even_when_it_fails() -> None:
    model = small_model()
    num_layers = len(prepackable_layers(model))
    assert num_layers == 2 * 7 + 1
    streamer_that_fails = type("Streamer", (), {"put": lambda self, value: 1 / 0})()
    with pytest.raises(ZeroDivisionError):
        model.generate(prompts(1, 4), streamer=streamer_that_fails, **OPTIONS)
    list(generate_many(model, [[5, 6]], max_new_tokens=8, stop_at_eos=False))
    assert len(prepackable_layers(model)) == num_layers


@needs_kernels
def test_new_weights_are_packed_by_the_next_call() -> None:
    model, other, ids = small_model(), small_model(), prompts(1, 5)
    model.generate(ids, **OPTIONS)
    with torch.no_grad():
        for parameter, source in zip(model.parameters(), other.parameters()):
            parameter.copy_(source.flip(0))
            source.copy_(parameter)
    assert torch.equal(model.generate(ids, **OPTIONS), other.generate(ids, pack_weights=False, **OPTIONS))


@needs_kernels
def test_prepacked_weights_are_used_where_the_copy_is_small(monkeypatch) -> None:
    model = small_model()
    with prepacked_weights(model, None):
        assert not prepackable_layers(model)
    monkeypatch.setattr("modeling_llada.prepacking_llada.AUTO_PREPACK_BYTES", 1000)
    with prepacked_weights(model, None):
        assert prepackable_layers(model)
    with prepacked_weights(model, True):
        assert not prepackable_layers(model)


@needs_kernels
def test_an_inner_call_leaves_the_outer_ones_prepacked_weights_alone() -> None:
    model = small_model()
    with prepacked_weights(model, True):
        with prepacked_weights(model, None):
            pass
        assert not prepackable_layers(model)
    assert prepackable_layers(model)


@needs_kernels
def test_calls_at_once_share_the_packed_weights_until_the_last_one_ends() -> None:
    model = small_model()
    first, second = prepacked_weights(model, True), prepacked_weights(model, True)
    first.__enter__()
    packed = vars(model.get_output_embeddings())["forward"]
    second.__enter__()
    first.__exit__(None, None, None)
    assert vars(model.get_output_embeddings())["forward"] is packed
    second.__exit__(None, None, None)
    assert len(prepackable_layers(model)) == 2 * 7 + 1


def test_what_cannot_be_packed_runs_as_it_is_and_raises_where_packing_is_demanded() -> None:
    half, ids = small_model(torch.float16), prompts(1, 4)
    with prepacked_weights(half, None), torch.no_grad():
        assert half(ids).logits.dtype == torch.float16
    with pytest.raises(
        ValueError, match=r"`pack_weights=True` is not available here: the model has no plain linear layers"
    ):
        half.generate(ids, pack_weights=True, **OPTIONS)
    with torch.autocast("cpu"), pytest.raises(ValueError, match=r"autocast chooses|this CPU"):
        small_model().generate(ids, pack_weights=True, **OPTIONS)
    with pytest.raises(ValueError, match="`compile=True` and `pack_weights=True` exclude each other"):
        small_model().generate(ids, pack_weights=True, compile=True, **OPTIONS)
    replaced = small_model()
    replaced.forward = replaced.forward
    with pytest.raises(ValueError, match=r"its `forward` replaced|this CPU"):
        replaced.generate(ids, pack_weights=True, **OPTIONS)
