"""Laws of the model: recorded logits, initialisation, loading, saving and what transformers expects."""

import copy
import json
import weakref

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, DynamicCache, Trainer, TrainingArguments

import modeling_llada.generation_config_llada as generation_config_llada
import modeling_llada.modeling_llada as modeling
from modeling_llada import LLaDAConfig, LLaDAGenerationConfig, LLaDAModel, LLaDAModelLM
from tests.helpers import REFERENCE

MASK = 488
SMALL = {"d_model": 32, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 64, "vocab_size": 100, "mask_token_id": 99}
SMALL |= {"eos_token_id": 0, "pad_token_id": 0}


def small_model(**fields) -> LLaDAModelLM:
    torch.manual_seed(0)
    return LLaDAModelLM(LLaDAConfig(**{**SMALL, **fields})).eval()


def ids_of(*shape: int) -> Tensor:
    return torch.randint(0, 90, shape, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def warnings_of_the_model(caplog):
    """What the model logs, with nothing said before."""
    modeling.logger.warning_once.cache_clear()
    modeling.logger.propagate = True
    return caplog


@torch.no_grad()
def test_logits_equal_the_official_models(reference) -> None:
    model, recorded = reference
    for name, case in recorded["logits"].items():
        for one in case if isinstance(case, list) else [case]:
            if "bf16" in name:
                continue
            mask = one.get("attention_mask", one.get("attention_bias"))
            output = model(one.get("input_ids"), mask, inputs_embeds=one.get("inputs_embeds"))
            assert torch.allclose(output.logits, one["logits"], atol=1e-4), name


@torch.no_grad()
def test_bfloat16_logits_equal_the_official_models_up_to_rounding(reference) -> None:
    model, recorded = reference
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    for name in ("bf16_single", "bf16_left_padded"):
        case = recorded["logits"][name]
        logits = rounded(case["input_ids"], case.get("attention_mask")).logits
        assert logits.dtype == torch.bfloat16
        # Two bfloat16 steps at the size of these logits.
        assert (logits.float() - case["logits"].float()).abs().max() <= case["logits"].abs().max().float() * 2**-6


@torch.no_grad()
def test_hidden_states_equal_the_official_models(reference) -> None:
    model, recorded = reference
    case = recorded["logits"]["single"]
    hidden_states = model(case["input_ids"], output_hidden_states=True).hidden_states
    assert len(hidden_states) == len(case["hidden_states"]) == model.config.n_layers + 1
    for ours, theirs in zip(hidden_states, case["hidden_states"]):
        assert torch.allclose(ours, theirs, atol=1e-4)


@torch.no_grad()
def test_a_sharded_checkpoint_equals_the_whole_one_bit_for_bit(tiny_model) -> None:
    sharded = LLaDAModelLM.from_pretrained(REFERENCE / "checkpoints" / "mha_sharded", dtype=torch.float32)
    for (name, ours), (_, theirs) in zip(tiny_model.state_dict().items(), sharded.state_dict().items()):
        assert torch.equal(ours, theirs), name


def test_parameter_names_and_shapes_are_the_official_ones(reference, tmp_path) -> None:
    model, recorded = reference
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes == recorded["meta"]["state_dict_shapes"]
    assert ("model.transformer.ff_out.weight" in shapes) == (not model.config.weight_tying)


@torch.no_grad()
def test_saved_and_loaded_logits_are_bit_equal(reference, tmp_path) -> None:
    model, recorded = reference
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    again = LLaDAModelLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = recorded["logits"]["single"]["input_ids"]
    assert torch.equal(again(ids).logits, model(ids).logits)


@torch.no_grad()
def test_logits_have_embedding_size_columns() -> None:
    assert small_model(embedding_size=128)(ids_of(1, 4)).logits.shape == (1, 4, 128)


@torch.no_grad()
def test_grouped_heads_equal_full_heads_with_repeated_weights() -> None:
    grouped, full = small_model(n_kv_heads=2), small_model()
    weights = grouped.state_dict()
    for name in weights:
        if "k_proj" in name or "v_proj" in name:
            weights[name] = weights[name].unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    assert torch.allclose(grouped(ids_of(2, 9)).logits, full(ids_of(2, 9)).logits, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("n_kv_heads", [4, 1])
def test_eager_attention_equals_sdpa(n_kv_heads) -> None:
    sdpa = small_model(n_kv_heads=n_kv_heads)
    eager = copy.deepcopy(sdpa)
    eager.set_attn_implementation("eager")
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    bias = torch.zeros(2, 1, 9, 9).masked_fill(mask[:, None, None] == 0, -1e9)
    for given in (None, mask, mask.bool(), mask[:, None, None].bool(), bias):
        assert torch.allclose(sdpa(ids_of(2, 9), given).logits, eager(ids_of(2, 9), given).logits, atol=1e-5)


@torch.no_grad()
def test_a_padded_row_equals_the_row_alone() -> None:
    model, row = small_model(), ids_of(1, 6)
    padded = torch.nn.functional.pad(row, (4, 0))
    mask = torch.tensor([[0] * 4 + [1] * 6])
    assert torch.allclose(model(padded, mask).logits[:, 4:], model(row).logits, atol=1e-5)


@torch.no_grad()
def test_positions_may_be_given_and_only_their_differences_count() -> None:
    model, ids = small_model(), ids_of(2, 6)
    logits = model(ids).logits
    assert torch.equal(model(ids, position_ids=torch.arange(6).expand(2, -1)).logits, logits)
    assert torch.allclose(model(ids, position_ids=torch.arange(40, 46)[None]).logits, logits, atol=1e-5)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.allclose(model(ids[:, order], position_ids=order[None]).logits, logits[:, order], atol=1e-5)
    assert not torch.allclose(model(ids[:, order]).logits, logits[:, order], atol=1e-2)


@torch.no_grad()
def test_every_position_sees_every_other_one() -> None:
    model, ids = small_model(), ids_of(1, 6)
    changed = ids.clone()
    changed[0, 5] = 98
    difference = (model(ids).logits - model(changed).logits).abs().amax(-1)
    assert (difference > 1e-6).all()


@torch.no_grad()
def test_selected_logits_are_rows_of_the_full_ones() -> None:
    model, ids = small_model(), ids_of(3, 9)
    selected = torch.rand(3, 9, generator=torch.Generator().manual_seed(1)) < 0.4
    full = model(ids).logits
    assert torch.allclose(model(ids, logits_positions=selected).logits, full[selected], atol=1e-6)
    assert torch.allclose(model(ids, logits_window=(2, 6)).logits, full[:, 2:6], atol=1e-5)
    inside = selected.clone()
    inside[:, :2], inside[:, 6:] = False, False
    both = model(ids, logits_positions=inside, logits_window=(2, 6)).logits
    assert torch.allclose(both, full[inside], atol=1e-5)
    padded = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, 1]]).expand(3, -1)
    windowed = model(ids, padded, logits_window=(2, 6), output_hidden_states=True)
    assert torch.allclose(windowed.logits, model(ids, padded).logits[:, 2:6], atol=1e-5)
    assert [state.shape[1] for state in windowed.hidden_states] == [9, 9, 9]


@torch.no_grad()
def test_attentions_sum_to_one_under_eager_attention() -> None:
    model = small_model()
    model.set_attn_implementation("eager")
    attentions = model(ids_of(1, 5), output_attentions=True).attentions
    assert [weights.shape for weights in attentions] == [(1, 4, 5, 5)] * 2
    assert torch.allclose(attentions[0].sum(-1), torch.ones(1, 4, 5))


@torch.no_grad()
def test_attentions_that_sdpa_does_not_compute_are_none_with_one_warning(warnings_of_the_model) -> None:
    model = small_model()
    for _ in range(2):
        output = model(ids_of(1, 5), output_attentions=True)
        assert output.attentions is None
        assert torch.equal(output.logits, model(ids_of(1, 5)).logits)
    assert warnings_of_the_model.text.count("`output_attentions=True` returns None: 'sdpa' attention") == 1


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_pass_keeps_no_activations_of_earlier_blocks(implementation) -> None:
    model = small_model(n_layers=6)
    model.set_attn_implementation(implementation)
    outputs, num_alive = [], []
    for block in model.model.transformer.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.extend(map(weakref.ref, output[:1])))
        if implementation == "eager":
            block.register_forward_hook(lambda module, inputs, output: outputs.append(weakref.ref(output[1])))
    count = lambda module, inputs: num_alive.append(sum(output() is not None for output in outputs))  # noqa: E731
    model.model.transformer.ln_f.register_forward_pre_hook(count)
    model(ids_of(1, 5))
    assert len(outputs) == (12 if implementation == "eager" else 6)
    # What the last block returned.
    assert num_alive == [len(outputs) // 6]


@torch.no_grad()
def test_logits_to_keep_are_the_last_columns_or_the_given_ones() -> None:
    model, ids = small_model(), ids_of(2, 7)
    full = model(ids).logits
    assert torch.equal(model(ids, logits_to_keep=0).logits, full)
    for kept, expected in ((3, full[:, 4:]), (9, full), (torch.tensor([5, 1]), full[:, [5, 1]])):
        assert torch.allclose(model(ids, logits_to_keep=kept).logits, expected, atol=1e-6)


@torch.no_grad()
def test_keywords_that_tokenizers_and_trainers_always_pass_change_nothing() -> None:
    ids = ids_of(2, 5)
    given = {"token_type_ids": torch.zeros_like(ids), "cache_position": torch.arange(5), "num_items_in_batch": 4}
    given |= {"shift_labels": None, "cu_seq_lens_q": None, "use_cache": False}
    for model in (small_model(), small_model().model):
        names = given if model.base_model is not model else {**given, "use_cache": None}
        assert torch.equal(model(ids, **names)[0], model(ids)[0])


def test_an_unknown_keyword_names_the_nearest_known_one() -> None:
    with pytest.raises(
        TypeError, match="`forward` got an unexpected keyword argument `logit_positions`; did you mean "
    ):
        small_model()(ids_of(1, 4), logit_positions=ids_of(1, 4) > 0)
    with pytest.raises(TypeError, match="keyword argument `xyz`; known arguments: input_ids, attention_mask, "):
        small_model().model(ids_of(1, 4), xyz=1)


@torch.no_grad()
def test_other_keywords_go_to_the_attention_function_that_the_caller_registered() -> None:
    seen = []

    def attention(module, query, key, value, attention_mask, scaling, dropout, cu_seq_lens_q, **others):
        seen.append((module.layer_idx, cu_seq_lens_q.tolist(), others))
        return modeling.eager_attention_forward(module, query, key, value, attention_mask, scaling)[0].flatten(2), None

    model, ids = small_model(), ids_of(1, 4)
    expected = model(ids).logits
    AttentionInterface.register("recording", attention)
    model.set_attn_implementation("recording")
    logits = model(ids, cu_seq_lens_q=torch.tensor([0, 4]), token_type_ids=ids).logits
    assert torch.allclose(logits, expected, atol=1e-5)
    assert seen == [(0, [0, 4], {}), (1, [0, 4], {})]


@torch.no_grad()
def test_logits_of_ids_without_a_mask_are_warned_of_once_as_no_scores_of_the_next_token(warnings_of_the_model) -> None:
    model, clean, noisy = small_model(), ids_of(2, 5), ids_of(2, 5)
    noisy[1, 3] = 99
    model(noisy)
    model(clean, logits_positions=clean > 0)
    model(inputs_embeds=model.get_input_embeddings()(clean))
    model.generate(clean, max_new_tokens=4, cache="dual")
    with FakeTensorMode(allow_non_fake_inputs=True) as without_values:
        model(without_values.from_tensor(clean))
    torch.export.export(model, (clean,))
    assert "no mask token" not in warnings_of_the_model.text
    for _ in range(2):
        model(clean)
    assert warnings_of_the_model.text.count("are not scores of the next token") == 1


def test_labels_are_not_shifted_and_count_at_masked_positions_only() -> None:
    model, labels = small_model(), ids_of(2, 6)
    noisy = labels.clone()
    noisy[0, [1, 4]], noisy[1, 0] = 99, 99
    ignored = labels.clone()
    ignored[0, 4] = -100
    log_probs = model(noisy).logits.log_softmax(-1)
    expected = -(log_probs[0, 1, labels[0, 1]] + log_probs[1, 0, labels[1, 0]]) / 2
    assert model(noisy, labels=ignored).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    embeds = model.get_input_embeddings()(noisy)
    every = -log_probs.gather(-1, labels[..., None]).mean()
    assert model(inputs_embeds=embeds, labels=labels).loss.item() == pytest.approx(every.item(), rel=1e-5)


def test_the_loss_that_transformers_would_choose_does_not_shift_either() -> None:
    model, labels = small_model(), ids_of(1, 6)
    logits = model(labels).logits
    chosen = model.loss_function(logits, labels, vocab_size=100)
    assert chosen.item() == pytest.approx(torch.nn.functional.cross_entropy(logits[0], labels[0]).item(), rel=1e-5)


def test_labels_without_a_mask_in_the_input_raise_and_name_the_trainers() -> None:
    with pytest.raises(ValueError, match=r"only learn to copy its input.*LLaDASFTTrainer.*LLaDAPretrainingTrainer"):
        small_model()(ids_of(1, 6), labels=ids_of(1, 6))


BAD_CALLS = [
    ({}, "exactly one of `input_ids` and `inputs_embeds`"),
    ({"input_ids": ids_of(1, 4), "inputs_embeds": torch.zeros(1, 4, 32)}, "exactly one of"),
    ({"input_ids": ids_of(1, 4), "use_cache": True}, "`use_cache=True` and the caches of transformers"),
    ({"input_ids": ids_of(1, 4), "past_key_values": DynamicCache()}, "the caches of transformers are not supported"),
    ({"input_ids": ids_of(1, 4), "attention_mask": torch.ones(1, 4, 4)}, r"`attention_mask` must be \[batch, seq\]"),
    ({"input_ids": ids_of(1, 4), "labels": ids_of(1, 4), "logits_window": (0, 2)}, "`labels` need the logits of all"),
    ({"input_ids": ids_of(1, 4), "labels": ids_of(1, 4), "logits_to_keep": 2}, "`labels` need the logits of all"),
    ({"input_ids": ids_of(1, 4), "logits_to_keep": 2, "logits_window": (0, 2)}, "either `logits_to_keep`, or"),
    ({"input_ids": ids_of(1, 4), "logits_to_keep": -1}, "`logits_to_keep` must be at least 0, got -1"),
    ({"input_ids": ids_of(1, 4), "shift_labels": ids_of(1, 4)}, "`shift_labels` is not available here: labels are nev"),
    ({"input_ids": ids_of(1, 4), "cu_seq_lens_q": ids_of(4)}, "`cu_seq_lens_q` is not available here: separate packed"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD_CALLS, ids=[message for _, message in BAD_CALLS])
def test_a_bad_call_is_named_with_a_way_out(inputs, message) -> None:
    with pytest.raises(ValueError, match=message):
        small_model()(**inputs)


def test_a_sequence_longer_than_the_model_is_warned_of_once(warnings_of_the_model) -> None:
    model = small_model(max_sequence_length=8)
    for _ in range(2):
        model(ids_of(1, 9))
    assert warnings_of_the_model.text.count("9 positions, more than `max_sequence_length` (8)") == 1


@pytest.mark.parametrize("options", [None, {"use_reentrant": True}, {"use_reentrant": False}], ids=str)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(options) -> None:
    gradients = []
    for checkpoints in (False, True):
        model = small_model().train()
        if checkpoints:
            model.gradient_checkpointing_enable(options)
        noisy = ids_of(2, 6)
        noisy[:, 2] = 99
        model(noisy, labels=ids_of(2, 6)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients):
        assert torch.allclose(plain, checkpointed, atol=1e-7)


def test_a_plain_trainer_takes_the_same_step_from_one_batch_and_from_accumulated_ones(tmp_path) -> None:
    pytest.importorskip("accelerate")
    labels = ids_of(4, 6)
    # As many masks in every row: `labels` give the mean over a batch, and the mean of means is the mean.
    rows = [{"input_ids": row.clone().index_fill(0, torch.tensor([1, 4]), 99), "labels": row} for row in labels]
    weights = []
    for batch, accumulation in ((4, 1), (1, 4)):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        options = TrainingArguments(
            str(tmp_path), **sizes, max_steps=1, optim="sgd", learning_rate=0.1, lr_scheduler_type="constant",
            max_grad_norm=0.0, report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        model = small_model()
        before = model.model.transformer.wte.weight.clone()
        Trainer(model, options, train_dataset=rows).train()
        assert not torch.equal(model.model.transformer.wte.weight, before)
        weights.append([parameter.detach() for parameter in model.parameters()])
    for whole, accumulated in zip(*weights):
        assert torch.allclose(whole, accumulated, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("weight_tying", [False, True])
def test_resized_embeddings_are_used_saved_and_loaded(weight_tying, tmp_path) -> None:
    model = small_model(weight_tying=weight_tying)
    before = model(ids_of(1, 5)).logits
    model.resize_token_embeddings(110)
    assert model.config.vocab_size == model.config.embedding_size == 110
    after = model(ids_of(1, 5)).logits
    assert after.shape == (1, 5, 110)
    assert torch.allclose(after[..., :100], before, atol=1e-6)
    model.save_pretrained(tmp_path)
    again = LLaDAModelLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert torch.equal(again(ids_of(1, 5)).logits, after)
    model.resize_token_embeddings(100)
    assert torch.allclose(model(ids_of(1, 5)).logits, before, atol=1e-6)


def test_mitchell_initialisation_scales_by_width_and_depth_and_cuts_at_three_deviations() -> None:
    model = small_model(d_model=256, n_layers=4, n_heads=4, mlp_hidden_size=512, vocab_size=400)
    weights = model.state_dict()
    for layer in range(4):
        residual = (2 * (layer + 1)) ** -0.5
        block = f"model.transformer.blocks.{layer}."
        expected = {"q_proj": 1 / 16, "up_proj": 1 / 16, "attn_out": residual / 16, "ff_out": residual * 512**-0.5}
        for name, std in expected.items():
            weight = weights[f"{block}{name}.weight"]
            # The cut takes 1.3 % off the standard deviation.
            assert weight.std().item() == pytest.approx(0.987 * std, rel=0.02)
            assert weight.abs().max() <= 3 * std
    assert weights["model.transformer.wte.weight"].std().item() == pytest.approx(0.987 / 16, rel=0.02)


def test_normal_initialisation_has_the_given_deviation_and_is_cut_only_where_asked() -> None:
    normal = small_model(init_fn="normal", init_std=0.1, d_model=256).get_input_embeddings().weight
    assert normal.std().item() == pytest.approx(0.1, rel=0.02)
    assert normal.abs().max() > 0.3
    cut = small_model(init_fn="normal", init_std=0.1, d_model=256, init_cutoff_factor=2.0).get_input_embeddings().weight
    assert cut.abs().max() <= 0.2
    mitchell = small_model(d_model=256, init_cutoff_factor=1.0).get_input_embeddings().weight
    assert mitchell.abs().max() <= 1 / 16


def test_data_type_and_device_map_are_respected(tmp_path) -> None:
    small_model().save_pretrained(tmp_path)
    assert LLaDAModelLM.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    placed = LLaDAModelLM.from_pretrained(tmp_path, device_map="auto", dtype=torch.float32)
    assert placed.generate(ids_of(1, 4), max_new_tokens=4).shape == (1, 8)


def test_the_model_without_head_returns_hidden_states() -> None:
    torch.manual_seed(0)
    model = LLaDAModel(LLaDAConfig(**SMALL)).eval()
    assert model(ids_of(2, 5)).last_hidden_state.shape == (2, 5, 32)
    assert model(ids_of(2, 5), return_dict=False)[0].shape == (2, 5, 32)
    assert small_model()(ids_of(2, 5), return_dict=False)[0].shape == (2, 5, 100)


def test_the_generation_config_is_ours_wherever_it_comes_from(tmp_path, tiny_model) -> None:
    model = small_model()
    assert isinstance(model.generation_config, LLaDAGenerationConfig)
    assert isinstance(tiny_model.generation_config, LLaDAGenerationConfig)
    assert tiny_model.generation_config.temperature == 0.0
    assert tiny_model.generation_config.eos_token_id == 481
    changed = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "steps": 7, "remasking": "margin", "cfg_scale": 0.5}
    changed |= {"stop_at_eos": False, "eos_token_id": [0, 5], "threshold": 0.9, "cache": "dual", "max_new_tokens": 20}
    model.generation_config = model.generation_config.updated(**changed)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["top_k"] == 50
    again = LLaDAModelLM.from_pretrained(tmp_path).generation_config
    assert {name: getattr(again, name) for name in changed} == changed
    assert again.block_length == 32


def test_a_config_for_open_length_survives_saving(tmp_path) -> None:
    model = small_model()
    model.generation_config = model.generation_config.updated(max_new_tokens=None, max_length=40)
    model.save_pretrained(tmp_path)
    again = LLaDAModelLM.from_pretrained(tmp_path).generation_config
    assert (again.max_new_tokens, again.max_length, again.temperature) == (None, 40, 0.0)


def test_options_written_by_hand_are_taken_and_the_others_stay_at_their_defaults(tmp_path, caplog) -> None:
    small_model().save_pretrained(tmp_path)
    written = {"remasking": "margin", "max_new_tokens": 9, "num_beams": 4, "": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(written))
    generation_config_llada.logger.propagate = True
    options = LLaDAModelLM.from_pretrained(tmp_path).generation_config
    assert (options.remasking, options.max_new_tokens, options.temperature) == ("margin", 9, 0.0)
    assert (options.top_k, options.max_length) == (None, None)
    assert "have no meaning for masked diffusion and are not used: num_beams" in caplog.text


def test_copies_and_pickles_compute_the_same(tmp_path) -> None:
    model = small_model()
    torch.save(model, tmp_path / "model.pt")
    pickled = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (copy.deepcopy(model), pickled):
        assert torch.equal(other(ids_of(1, 5)).logits, model(ids_of(1, 5)).logits)
        assert other.generation_config.block_length == 32


def test_peft_finds_the_sizes_for_soft_prompts() -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(small_model(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert adapted.prompt_encoder["default"].embedding.weight.shape == (2, 32)


def test_a_lora_adapter_on_the_official_module_names_trains_and_generates() -> None:
    peft = pytest.importorskip("peft")
    names = ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"]
    names = rf"model\.transformer\.blocks\.\d+\.({'|'.join(names)})"
    adapted = peft.get_peft_model(small_model(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=names, r=2))
    noisy = ids_of(2, 6)
    noisy[:, 2] = 99
    adapted(input_ids=noisy, labels=ids_of(2, 6)).loss.backward()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.grad is not None]
    assert len(trained) == 2 * 7 * 2 and all("lora_" in name for name in trained)
    assert adapted.generate(input_ids=ids_of(1, 4), max_new_tokens=4).shape == (1, 8)


@torch.no_grad()
def test_peft_adapts_both_sides_of_a_tied_weight() -> None:
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], trainable_token_indices=[3, 5])
    adapted = peft.get_peft_model(small_model(weight_tying=True), adapter).eval()
    for name, parameter in adapted.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.normal_()
    noisy = ids_of(2, 6)
    noisy[:, :3] = torch.tensor([3, 99, 5])
    logits = adapted(input_ids=noisy).logits
    assert torch.allclose(adapted.merge_and_unload()(noisy).logits, logits, atol=1e-4)
