"""Laws of the training losses, against what the official code computed."""

import pytest
import torch
import torch.nn.functional as F

from llada_core.diffusion import NoisyBatch, add_noise
from llada_training import draw_noise, pretraining_loss, score_masked, sft_loss
from llada_training import loss as loss_file

ALL = torch.ones(1, 100, dtype=torch.bool)


def check_gradients(model, loss, recorded):
    model.zero_grad()
    loss.backward()
    for name, parameter in model.named_parameters():
        norm = recorded["grad_norms"][name]
        assert parameter.grad.norm().item() == pytest.approx(norm, rel=1e-4), name
    assert torch.allclose(model.model.transformer.wte.weight.grad, recorded["grad_wte"], rtol=1e-4, atol=1e-5)
    model.zero_grad()


def score(model, noisy, labels):
    logits = model(noisy.input_ids, logits_positions=noisy.is_masked).logits
    return score_masked(logits, labels, noisy.is_masked).token_losses


def test_the_pretraining_loss_and_its_gradients_are_those_of_the_official_code(reference):
    model, recordings = reference
    recorded = recordings["loss"]["pretrain"]
    ids = recorded["input_ids"]
    noisy = add_noise(
        ids, torch.ones_like(ids, dtype=torch.bool), model.config.mask_token_id, recorded["t"], recorded["u"]
    )
    assert torch.equal(noisy.is_masked, recorded["masked_indices"])
    assert torch.equal(noisy.input_ids, recorded["noisy"])
    token_losses = score(model, noisy, ids)
    weights = noisy.weights[noisy.is_masked.nonzero()[:, 0]]
    assert torch.allclose(token_losses * weights, recorded["token_loss_over_p"], rtol=1e-4)
    loss = pretraining_loss(token_losses, noisy, ids.numel())
    assert loss.item() == pytest.approx(recorded["loss"], rel=1e-4)
    check_gradients(model, loss, recorded)


@pytest.mark.parametrize("name", ["pretrain_seed3", "pretrain_seed4"])
def test_the_pretraining_loss_equals_the_official_one_on_its_own_draws(reference, name):
    model, recordings = reference
    recorded = recordings["loss"][name]
    noisy = NoisyBatch(
        recorded["input_ids"].masked_fill(recorded["masked_indices"], model.config.mask_token_id),
        recorded["masked_indices"],
        1.0 / recorded["p_mask"][:, 0],
        recorded["t"],
    )
    loss = pretraining_loss(score(model, noisy, recorded["input_ids"]), noisy, recorded["input_ids"].numel())
    assert loss.item() == pytest.approx(recorded["loss"], rel=1e-4)


def test_the_fine_tuning_loss_and_its_gradients_are_those_of_the_official_code(reference):
    model, recordings = reference
    recorded = recordings["loss"]["sft"]
    ids, prompt_lengths = recorded["input_ids"], recorded["prompt_lengths"]
    is_answer = torch.arange(ids.shape[1]) >= prompt_lengths[:, None]
    noisy = add_noise(ids, is_answer, model.config.mask_token_id, recorded["t"], recorded["u"])
    assert torch.equal(noisy.is_masked, recorded["masked_indices"])
    labels = ids.masked_fill(~is_answer, -100)
    loss = sft_loss(score(model, noisy, labels), noisy, labels, len(ids))
    assert loss.item() == pytest.approx(recorded["loss"], rel=1e-4)
    check_gradients(model, loss, recorded)


def test_cross_entropy_is_computed_in_float32_from_bfloat16_logits():
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.tensor([[3, 1, 4, 1, 5]])
    predictions = score_masked(logits, labels, torch.ones(1, 5, dtype=torch.bool))
    expected = torch.logsumexp(logits.double(), -1) - logits.double()[torch.arange(5), labels[0]]
    assert predictions.token_losses.dtype == torch.float32
    assert torch.allclose(predictions.token_losses.double(), expected, atol=1e-5)


def test_a_prediction_is_correct_where_the_clean_token_is_the_most_probable():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    predictions = score_masked(logits, torch.tensor([[1, 7, 2]]) % 3, torch.tensor([[True, False, True]]))
    assert predictions.is_correct.tolist() == [True, False]


def test_a_batch_without_a_masked_token_has_loss_zero_and_zero_gradients(make_model):
    model, ids = make_model(), torch.tensor([[1, 2, 3]])
    noisy = NoisyBatch(ids, torch.zeros(1, 3, dtype=torch.bool), torch.ones(1), torch.ones(1))
    loss = pretraining_loss(score(model, noisy, ids), noisy, 3)
    loss.backward()
    assert loss.item() == 0
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("exact_count", [False, True])
def test_a_label_of_minus_100_is_never_masked(exact_count):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 400, (64, 40), generator=generator)
    labels = ids.masked_fill(torch.rand(64, 40, generator=generator) < 0.5, -100)
    labels[0] = -100
    for step in range(20):
        noisy = draw_noise(ids, labels, torch.arange(64), torch.linspace(0.01, 1, 64), 488, 0, step, exact_count)
        assert not noisy.is_masked[labels == -100].any()
        assert torch.equal(noisy.input_ids[labels == -100], ids[labels == -100])
    assert noisy.is_masked.any()


# --- the cross-entropy in chunks: that of torch, and nothing large kept but the logits --------------------------------


@pytest.fixture(params=[1, 7, 100], ids="chunks of {} rows".format)
def rows_per_chunk(request, monkeypatch):
    monkeypatch.setattr(loss_file, "CHUNK_SIZE", 50 * request.param)
    return request.param


def make_rows(dtype, scale=4.0):
    generator = torch.Generator().manual_seed(0)
    logits = (scale * torch.randn(23, 50, generator=generator)).to(dtype).requires_grad_(True)
    return logits, torch.randint(0, 50, (23,), generator=generator), torch.rand(23, generator=generator)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_losses_and_gradients_are_torchs_whatever_the_chunk(rows_per_chunk, dtype, tolerance, scale):
    logits, targets, factors = make_rows(dtype, scale)
    losses, is_hit = score_masked(logits, targets[None], ALL[:, : len(targets)])
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
    losses, is_hit = score_masked(logits, torch.tensor([[0]]), ALL[:, :1])
    assert losses.item() == pytest.approx(0.0067153485, rel=1e-4)  # log(1 + exp(-5))
    assert is_hit.tolist() == [True]


def test_no_rows_give_no_losses():
    logits = torch.zeros(0, 50, requires_grad=True)
    losses, is_hit = score_masked(logits, torch.zeros(1, 0, dtype=torch.long), ALL[:, :0])
    losses.sum().backward()
    assert losses.shape == is_hit.shape == (0,)
    assert logits.grad.shape == (0, 50)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_but_the_logits_is_kept_for_the_backward_pass(dtype):
    logits, targets, _ = make_rows(dtype)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        score_masked(logits, targets[None], ALL[:, : len(targets)])
    large = [tensor for tensor in kept if tensor.numel() > logits.shape[0]]
    assert [tensor.data_ptr() for tensor in large] == [logits.data_ptr()]
