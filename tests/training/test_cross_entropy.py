"""Laws of the cross-entropy in chunks: that of torch, with its gradient, and nothing large kept but the logits."""

import pytest
import torch
import torch.nn.functional as F

from llada_training import cross_entropy
from llada_training.cross_entropy import cross_entropy_and_hits


@pytest.fixture(params=[1, 7, 100], ids="chunks of {} rows".format)
def rows_per_chunk(request, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_SIZE", 50 * request.param)
    return request.param


def make_rows(dtype, scale=4.0):
    generator = torch.Generator().manual_seed(0)
    logits = (scale * torch.randn(23, 50, generator=generator)).to(dtype).requires_grad_(True)
    return logits, torch.randint(0, 50, (23,), generator=generator), torch.rand(23, generator=generator)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_losses_and_gradients_are_torchs_whatever_the_chunk(rows_per_chunk, dtype, tolerance, scale):
    logits, targets, factors = make_rows(dtype, scale)
    losses, is_hit = cross_entropy_and_hits(logits, targets)
    (losses * factors).sum().backward()
    exact = logits.detach().double().requires_grad_(True)
    expected = F.cross_entropy(exact, targets, reduction="none")
    (expected * factors).sum().backward()
    assert losses.dtype == torch.float32 and logits.grad.dtype == dtype
    assert torch.allclose(losses.double(), expected, rtol=1e-6, atol=1e-5)
    assert torch.allclose(logits.grad.double(), exact.grad, rtol=tolerance, atol=1e-7)
    assert torch.equal(is_hit, logits.argmax(-1) == targets)


def test_a_sure_prediction_keeps_its_small_loss():
    logits = torch.tensor([[1000.0, 995.0, -torch.inf]])
    losses, is_hit = cross_entropy_and_hits(logits, torch.tensor([0]))
    assert losses.item() == pytest.approx(0.0067153485, rel=1e-4)  # log(1 + exp(-5))
    assert is_hit.tolist() == [True]


def test_no_rows_give_no_losses():
    logits = torch.zeros(0, 50, requires_grad=True)
    losses, is_hit = cross_entropy_and_hits(logits, torch.zeros(0, dtype=torch.long))
    losses.sum().backward()
    assert losses.shape == is_hit.shape == (0,)
    assert logits.grad.shape == (0, 50)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_but_the_logits_is_kept_for_the_backward_pass(dtype):
    logits, targets, _ = make_rows(dtype)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        cross_entropy_and_hits(logits, targets)
    large = [tensor for tensor in kept if tensor.numel() > logits.shape[0]]
    assert [tensor.data_ptr() for tensor in large] == [logits.data_ptr()]
