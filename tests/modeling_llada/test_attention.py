"""Laws of attention: every implementation gets masks of its kind, and gives the same logits and the same text."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

import modeling_llada.modeling_llada as modeling
from modeling_llada import LLaDAConfig, LLaDAModelLM
from tests import flash_stand_in

SMALL = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden_size": 64, "vocab_size": 100}
SMALL |= {"mask_token_id": 99, "eos_token_id": 0, "pad_token_id": 0}
# Rows padded on the left, on the right and not at all.
PADDED = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0, 0], [1] * 9])
LENGTHS = {"cu_seq_lens_q": torch.tensor([0, 5, 9], dtype=torch.int32), "max_length_q": 5}
LENGTHS |= {"cu_seq_lens_k": LENGTHS["cu_seq_lens_q"], "max_length_k": 5}


def small_model(attention: str = "sdpa") -> LLaDAModelLM:
    torch.manual_seed(0)
    model = LLaDAModelLM(LLaDAConfig(**SMALL)).eval()
    model.set_attn_implementation(attention)
    return model


@pytest.fixture
def flash() -> LLaDAModelLM:
    return small_model(flash_stand_in.register())


@pytest.fixture
def flex() -> LLaDAModelLM:
    # Kernels for shapes that vary do not always compile on a CPU.
    torch.compiler.reset()
    return small_model("flex_attention")


def noisy_ids(*shape: int) -> Tensor:
    return torch.randint(1, 100, shape, generator=torch.Generator().manual_seed(3))


def test_the_implementations_that_transformers_may_choose_are_declared():
    assert LLaDAModelLM._supports_sdpa and LLaDAModelLM._supports_flash_attn and LLaDAModelLM._supports_flex_attn
    # Servers with this sign sample next tokens.
    assert not LLaDAModelLM.is_backend_compatible()


@torch.no_grad()
def test_the_forward_compiles_to_one_graph():
    model, ids = small_model(), noisy_ids(3, 9)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(ids, PADDED).logits, model(ids, PADDED).logits)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, (2, 6)])
def test_flash_attention_with_padding_equals_sdpa(flash, window):
    ids, is_valid = noisy_ids(3, 9), PADDED.bool()
    if window is not None:
        is_valid = is_valid[:, slice(*window)]
    ours, theirs = (model(ids, PADDED, logits_window=window).logits for model in (flash, small_model()))
    assert torch.allclose(ours[is_valid], theirs[is_valid], atol=1e-5)
    alone = flash(ids[2:], logits_window=window).logits
    assert torch.allclose(alone[0], theirs[2], atol=1e-5)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_flash_attention_generates_what_sdpa_generates(flash, cache):
    # A window of the cache lies anywhere between padded ends, with `infill` too.
    prompts, options = noisy_ids(3, 9).clamp(max=98), {"cache": cache, "block_length": 4}
    left = PADDED.sort(-1).values
    texts = [model.generate(prompts, left, max_new_tokens=8, **options) for model in (flash, small_model())]
    assert torch.equal(*texts)
    holey = prompts.masked_fill(torch.tensor([0, 0, 0, 1, 0, 1, 0, 0, 0]).bool(), 99)
    assert torch.equal(*(model.infill(holey, PADDED, **options) for model in (flash, small_model())))


@torch.no_grad()
def test_texts_side_by_side_equal_the_texts_alone_under_flash_attention(flash):
    ids = noisy_ids(1, 9)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]])
    packed = flash(ids, position_ids=positions, **LENGTHS).logits
    alone = torch.cat([flash(ids[:, :5]).logits, flash(ids[:, 5:]).logits], dim=1)
    assert torch.allclose(packed, alone, atol=1e-5)
    window = flash(ids, position_ids=positions, logits_window=(3, 7), **LENGTHS).logits
    assert torch.allclose(window, packed[:, 3:7], atol=1e-5)


@torch.no_grad()
def test_flex_attention_equals_sdpa(flex):
    sdpa, ids = small_model(), noisy_ids(3, 9).clamp(max=98)
    for window in (None, (2, 6)):
        is_valid = PADDED[:, slice(*window or (None,))].bool()
        ours, theirs = (model(ids, PADDED, logits_window=window).logits for model in (flex, sdpa))
        assert torch.allclose(ours[is_valid], theirs[is_valid], atol=1e-5)
    # A pass of a cache has fewer queries than keys.
    texts = [model.generate(ids, PADDED.sort(-1).values, max_new_tokens=4, cache="dual") for model in (flex, sdpa)]
    assert torch.equal(*texts)


@torch.no_grad()
def test_a_block_mask_or_a_bool_mask_separates_texts_under_flex_attention(flex):
    ids = noisy_ids(1, 9)
    text = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1])
    block_mask = create_block_mask(lambda b, h, q, k: text[q] == text[k], 1, None, 9, 9, device="cpu")
    dense = (text[:, None] == text)[None, None]
    expected = small_model()(ids, dense).logits
    for mask in (block_mask, dense):
        assert torch.allclose(flex(ids, mask).logits, expected, atol=1e-5)


def test_a_block_mask_is_made_of_the_blocks_that_hold_valid_keys():
    is_valid = torch.zeros(2, 300).bool()
    is_valid[0, 130:], is_valid[1, :5] = True, True
    mask = modeling.padding_block_mask(is_valid, 200)
    assert mask.shape == (2, 1, 200, 300)
    assert mask.to_dense()[:, 0].tolist() == [[[0, 1, 1]] * 2, [[1, 0, 0]] * 2]


@torch.no_grad()
def test_an_implementation_with_masks_of_sdpa_gets_them():
    def attention(module, query, key, value, attention_mask, scaling, dropout):
        seen.append(attention_mask)
        return modeling.eager_attention_forward(module, query, key, value, attention_mask, scaling)

    seen: list[Tensor] = []
    AttentionInterface.register("dense_stand_in", attention)
    AttentionMaskInterface.register("dense_stand_in", sdpa_mask)
    assert modeling.mask_kind("dense_stand_in") == "dense" and modeling.mask_kind("unheard_of") is None
    small_model("dense_stand_in")(noisy_ids(3, 9), PADDED)
    assert [(mask.dtype, tuple(mask.shape)) for mask in seen] == [(torch.bool, (3, 1, 1, 9))] * 2


WRONG = [
    (
        flash_stand_in.NAME,
        {"attention_mask": torch.ones(1, 1, 9, 9).bool()},
        r"`attention_mask` must be \[batch, seq\]",
    ),
    (flash_stand_in.NAME, {"attention_mask": torch.ones(1, 9), **LENGTHS}, "`cu_seq_lens_q` and `attention_mask` excl"),
    (flash_stand_in.NAME, {"max_length_k": 5}, "`max_length_k` needs `cu_seq_lens_q` beside it; pass cu_seq_lens_q, "),
    ("flex_attention", {"attention_mask": torch.zeros(1, 1, 9, 9)}, "`attention_mask` must be bool or a `BlockMask`"),
    ("flex_attention", LENGTHS, "`cu_seq_lens_q` is not available here: separate packed texts by a 4-D bool"),
    ("sdpa", LENGTHS, "`cu_seq_lens_q` is not available here: .* or use flash attention"),
    (
        "sdpa",
        {"attention_mask": modeling.padding_block_mask(torch.ones(1, 9).bool(), 9)},
        "must be a tensor for 'sdpa'",
    ),
]


@pytest.mark.parametrize("attention, arguments, message", WRONG)
def test_masks_that_an_implementation_cannot_take_are_refused(attention, arguments, message):
    flash_stand_in.register()
    with pytest.raises(ValueError, match=message):
        small_model(attention)(noisy_ids(1, 9), **arguments)
