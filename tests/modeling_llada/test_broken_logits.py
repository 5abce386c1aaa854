"""Laws of logits that decide on nothing: every mode of generation ends in an error, and none in a loop."""

import pytest
import torch
from torch import Tensor
from transformers import CompileConfig

from modeling_llada import LLaDAConfig, LLaDAModelLM, generate_many
from modeling_llada.unmasking_llada import Proposer, entropy, most_probable

EOS, EOT, MASK = 0, 1, 99
PROMPT = torch.tensor([[5, 6, 7], [8, 9, 10]])
FEW = {"max_new_tokens": 6, "block_length": 3, "stop_at_eos": False}


def make_model(**options) -> LLaDAModelLM:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 64}
    ids = {"vocab_size": 100, "mask_token_id": MASK, "eos_token_id": EOS, "pad_token_id": EOS}
    return LLaDAModelLM(LLaDAConfig(**sizes, **ids | options)).eval()


@pytest.fixture(scope="module")
def model() -> LLaDAModelLM:
    return make_model()


@pytest.fixture(scope="module")
def broken() -> LLaDAModelLM:
    """A model all of whose logits are NaN."""
    model = make_model()
    model.model.transformer.ff_out.weight.data.fill_(torch.nan)
    return model


MODES = [
    {},
    {"steps": 4},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5, "top_p": 0.9},
    {"remasking": "random"},
    {"remasking": "random", "temperature": 1.0},
    {"remasking": "margin"},
    {"remasking": "entropy"},
    {"threshold": 0.9},
    {"factor": 1.0},
    {"frechet": 0.2},
    {"entropy_bound": 0.1},
    {"cfg_scale": 1.0},
    {"cache": "prefix"},
    {"cache": "dual", "freeze_prompt": True},
    {"remask_rate": 0.3},
    {"suffix_window": 0},
    {"logits_eos_inf": True},
    {"confidence_eos_eot_inf": True, "eot_token_id": EOT},
    {"confidence_eos_eot_inf": True, "eot_token_id": EOT, "remasking": "margin"},
    {"stop_at_eos": True},
    {"max_new_tokens": None, "max_length": 12},
]


@pytest.mark.parametrize("options", MODES, ids=str)
def test_a_model_whose_logits_are_not_finite_is_refused_in_every_mode(broken, options) -> None:
    options = {**FEW, **options}
    with pytest.raises(ValueError, match=r"`logits` must be finite.*got torch\.float32 logits with NaN"):
        broken.generate(PROMPT, **options)
    if "freeze_prompt" not in options:
        with pytest.raises(ValueError, match="`logits` must be finite"):
            list(generate_many(broken, PROMPT.tolist(), **options))


def test_infilling_and_a_compiled_model_refuse_them_too(broken) -> None:
    with pytest.raises(ValueError, match="`logits` must be finite"):
        broken.infill(torch.tensor([[5, MASK, 7, MASK]]))
    with pytest.raises(ValueError, match="`logits` must be finite"):
        broken.generate(PROMPT, compile=True, compile_config=CompileConfig(backend="eager", mode=None), **FEW)


def test_the_error_names_the_data_type_of_the_model(broken) -> None:
    with pytest.raises(ValueError, match=r"torch\.bfloat16.*load the model with"):
        make_model_in(broken, torch.bfloat16).generate(PROMPT, pack_weights=False, **FEW)


def make_model_in(broken: LLaDAModelLM, dtype: torch.dtype) -> LLaDAModelLM:
    model = make_model().to(dtype)
    model.load_state_dict(broken.state_dict())
    return model


def leave_only(*ids: int, first_rows: int | None = None):
    """A processor that forbids every other token."""

    def process(_: Tensor, logits: Tensor) -> Tensor:
        is_forbidden = torch.ones(logits.shape[-1], dtype=torch.bool)
        is_forbidden[list(ids)] = False
        logits[:first_rows] = logits[:first_rows].masked_fill(is_forbidden, -torch.inf)
        return logits

    return process


def raise_one(_: Tensor, logits: Tensor) -> Tensor:
    logits[-1, 7] = torch.inf
    return logits


WITHOUT_CHOICE = {
    "nothing": leave_only(),
    "nothing at one position": leave_only(first_rows=1),
    "only the mask": leave_only(MASK),
    "an infinite logit": raise_one,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("remasking", ["low_confidence", "margin", "entropy", "random"])
@pytest.mark.parametrize("processor", WITHOUT_CHOICE.values(), ids=WITHOUT_CHOICE)
def test_a_processor_that_leaves_no_choice_is_refused(model, processor, remasking, temperature) -> None:
    with pytest.raises(ValueError, match=r"`logits` must be finite.*`logits_processor`"):
        model.generate(PROMPT, logits_processor=[processor], remasking=remasking, temperature=temperature, **FEW)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("remasking", ["low_confidence", "margin", "entropy", "random"])
def test_a_model_whose_mask_is_token_0_proposes_it_no_more_than_another(remasking, temperature) -> None:
    model = make_model(mask_token_id=0, eos_token_id=1, pad_token_id=1)
    options = {"remasking": remasking, "temperature": temperature, **FEW}
    for processor in (leave_only(), leave_only(0)):
        with pytest.raises(ValueError, match="`logits` must be finite"):
            model.generate(PROMPT, logits_processor=[processor], **options)
    assert (model.generate(PROMPT, logits_processor=[leave_only(0, 3)], **options)[:, 3:] == 3).all()
    assert most_probable(torch.full((1, 5), -torch.inf), 0).item() != 0


def test_only_an_end_of_text_that_is_never_to_be_proposed_is_no_choice(model) -> None:
    with pytest.raises(ValueError, match="`logits_eos_inf` leave"):
        model.generate(PROMPT, logits_processor=[leave_only(EOS)], logits_eos_inf=True, **FEW)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("remasking", ["low_confidence", "margin", "entropy", "random"])
def test_only_tokens_that_come_last_are_committed_in_order(model, remasking, temperature) -> None:
    output = model.generate(
        PROMPT, logits_processor=[leave_only(EOS, EOT)], confidence_eos_eot_inf=True, eot_token_id=EOT,
        remasking=remasking, temperature=temperature, return_dict_in_generate=True, output_history=True, **FEW,
    )  # fmt: skip
    assert (output.sequences[:, 3:] <= EOT).all()
    if remasking != "random":
        assert [(canvas != MASK).sum(-1).tolist() for canvas in output.history] == [[n, n] for n in range(3, 10)]
        assert (output.history[1][:, 3] != MASK).all()


def test_a_vocabulary_of_one_token_and_the_mask_is_certain() -> None:
    assert entropy(torch.tensor([[0.3, 0.9]]), torch.tensor([0]), 1).tolist() == [1.0]
    model = make_model(vocab_size=2, embedding_size=2, mask_token_id=1, eos_token_id=0, pad_token_id=0)
    for remasking in ("low_confidence", "margin", "entropy", "random"):
        output = model.generate(torch.tensor([[0, 0]]), remasking=remasking, **FEW)
        assert output.tolist() == [[0] * 8]


def test_confidences_of_finite_logits_are_the_probabilities_to_the_last_bit() -> None:
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)) * 40
    candidates, confidence, _ = Proposer(mask_token_id=MASK)(logits.clone())
    chosen = logits.gather(-1, candidates[:, None])[:, 0]
    assert torch.equal(confidence, (chosen - logits.logsumexp(-1)).exp())


@pytest.mark.parametrize("value", [float("inf"), 1e300, 1e-45, -1.0, float("nan")])
def test_a_temperature_must_leave_logits_finite(model, value) -> None:
    with pytest.raises(ValueError, match="`temperature` must be 0, or from 1e-6 to 1e6, got"):
        model.generate(PROMPT, temperature=value, **FEW)


def test_a_guidance_scale_must_be_finite(model) -> None:
    with pytest.raises(ValueError, match="`cfg_scale` must be a finite number of at least 0, got inf"):
        model.generate(PROMPT, cfg_scale=float("inf"), **FEW)
    with pytest.raises(ValueError, match=r"`logits` must be finite.*`cfg_scale`"):
        model.generate(PROMPT, cfg_scale=1e300, **FEW)


@pytest.mark.parametrize(
    ("returned", "got"),
    [(lambda logits: None, "None"), (lambda logits: logits[:, 1:], r"\(3, 99\)")],
    ids=["None", "cut"],
)
def test_a_processor_must_return_logits_of_the_shape_it_got(model, returned, got) -> None:
    def careless(_: Tensor, logits: Tensor) -> Tensor:
        return returned(logits)

    with pytest.raises(ValueError, match=rf"`logits_processor` must return .*\(3, 100\); `careless` returned {got}"):
        model.generate(PROMPT[:1], logits_processor=[careless, careless], **FEW)
