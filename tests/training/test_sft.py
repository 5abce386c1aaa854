"""Laws of the fine-tuning trainer: noise on responses only, and one training however a step is split or resumed."""

import pytest
import torch
import transformers
from datasets import Dataset

from llada_training import LLaDASFTTrainer, draw_noise, training_noise_levels
from llada_training.batch import padding_mask

# transformers 4 rounds the losses that it logs to four places.
LOG_PRECISION = 1e-5 if int(transformers.__version__.split(".")[0]) > 4 else 2e-4
NOISES = {
    "independent": {},
    "token": {"loss_normalization": "token", "eos_fill": 2},
    "exact": {"exact_count": True, "low_discrepancy": True, "num_noise_samples": 2, "complementary_masks": True},
}


class RecordingTrainer(LLaDASFTTrainer):
    """Keeps every noisy batch and what it was made from."""

    def __init__(self, *args, **options):
        self.seen = []
        super().__init__(*args, **options)

    def _model_inputs(self, noisy, inputs, num_draws):
        self.seen.append((noisy, inputs))
        return super()._model_inputs(noisy, inputs, num_draws)


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("data", ["pairs", "chats"])
def test_a_batch_of_eight_trains_like_eight_accumulated_batches_of_one(make_sft_trainer, request, data, noise):
    # Plain gradient descent: AdamW's first steps blow rounding up to the sign of a gradient.
    options = {"optim": "sgd", "learning_rate": 0.1, "train_dataset": request.getfixturevalue(data), **noise}
    whole = make_sft_trainer(per_device_train_batch_size=8, **options)
    split = make_sft_trainer(per_device_train_batch_size=1, gradient_accumulation_steps=8, **options)
    whole.train()
    split.train()
    assert logged(whole, "loss") == pytest.approx(logged(split, "loss"), abs=LOG_PRECISION)
    for ours, theirs in zip(whole.model.parameters(), split.model.parameters()):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("packing", [False, True])
def test_no_token_outside_responses_is_ever_masked(make_sft_trainer, chats, noise, packing):
    options = {"packing": packing, **noise} | ({"eos_fill": 1} if packing else {})
    trainer = make_sft_trainer(None, RecordingTrainer, train_dataset=chats, eval_dataset=chats, max_steps=6, **options)
    trainer.train()
    trainer.evaluate()
    num_masked = num_given = 0
    for noisy, inputs in trainer.seen:
        num_draws = len(noisy.input_ids) // len(inputs["input_ids"])
        labels, clean = inputs["labels"].repeat(num_draws, 1), inputs["input_ids"].repeat(num_draws, 1)
        given = labels == -100
        assert not noisy.is_masked[given].any()
        assert torch.equal(noisy.input_ids[given], clean[given])
        assert torch.equal(noisy.input_ids == 488, noisy.is_masked)
        num_masked, num_given = num_masked + noisy.is_masked.sum(), num_given + given.sum()
    assert num_masked > 300 and num_given > 2000


def test_the_logged_loss_is_that_of_the_paper(make_sft_trainer, make_model, pairs, tokenizer):
    trainer = make_sft_trainer(per_device_train_batch_size=24, max_steps=1)
    trainer.train()
    rows = [
        tokenizer(prompt + completion)["input_ids"] for prompt, completion in zip(pairs["prompt"], pairs["completion"])
    ]
    longest = max(len(row) for row in rows) + 1
    model, total = make_model(max_sequence_length=160), 0.0
    for index, (row, prompt) in enumerate(zip(rows, pairs["prompt"])):
        ids = torch.tensor([row + [481] * (longest - len(row))])
        example = torch.tensor([index])
        labels = ids.clone()
        labels[0, : len(tokenizer(prompt)["input_ids"])] = -100
        level = training_noise_levels(example, example, 7, 0)
        noisy = draw_noise(ids, labels, example, level, 488, 7, 0)
        log_probs = model(noisy.input_ids).logits.log_softmax(-1)
        token_losses = -log_probs.gather(-1, ids[..., None])[..., 0][noisy.is_masked]
        probability = 0.999 * level.item() + 0.001
        total += token_losses.sum().item() / probability / (labels != -100).sum().item()
    assert logged(trainer, "loss")[0] == pytest.approx(total / 24, rel=1e-4)


@pytest.mark.parametrize("data", ["pairs", "chats"])
def test_the_evaluation_loss_does_not_depend_on_the_batch(make_sft_trainer, request, data):
    dataset = request.getfixturevalue(data)
    results = [
        make_sft_trainer(train_dataset=dataset, eval_dataset=dataset, per_device_eval_batch_size=size).evaluate()
        for size in (1, 7, 16)
    ]
    for name in ("eval_loss", "eval_masked_fraction", "eval_masked_accuracy", "eval_loss_t_0.25", "eval_loss_t_1.00"):
        values = [result[name] for result in results]
        assert values == pytest.approx([values[0]] * 3, rel=1e-6), name


def test_the_evaluation_depends_neither_on_the_seed_nor_on_the_step(make_sft_trainer, chats):
    first = make_sft_trainer(eval_dataset=chats, seed=1).evaluate()["eval_loss"]
    other = make_sft_trainer(eval_dataset=chats, seed=2)
    other.state.global_step = 9
    assert other.evaluate()["eval_loss"] == first


def test_data_given_to_evaluate_and_sets_in_a_dict_are_prepared_alike(make_sft_trainer, chats, pairs):
    trainer = make_sft_trainer(eval_dataset={"a": chats, "b": pairs})
    results = trainer.evaluate()
    assert trainer.evaluate(chats)["eval_loss"] == results["eval_a_loss"]
    assert trainer.evaluate(trainer.eval_dataset["b"])["eval_loss"] == results["eval_b_loss"]


@pytest.mark.parametrize("normalization", ["answer", "token"])
def test_the_evaluation_loss_averages_as_the_training_loss_does(make_sft_trainer, normalization):
    options = {"loss_normalization": normalization, "per_device_eval_batch_size": 1, "eos_fill": 0}
    dataset = Dataset.from_dict({"prompt": ["a", "a"], "completion": ["b", "c " * 9]})
    both = make_sft_trainer(eval_dataset=dataset, **options).evaluate()["eval_loss"]
    numbered = dataset.add_column("example_id", [0, 1])
    trainer = make_sft_trainer(eval_dataset=numbered, **options)
    alone = [trainer.evaluate(numbered.select([i]))["eval_loss"] for i in range(2)]
    lengths = [(torch.tensor(row) != -100).sum().item() + 1 for row in trainer.eval_dataset["labels"]]
    weights = [1, 1] if normalization == "answer" else lengths
    expected = sum(loss * weight for loss, weight in zip(alone, weights)) / sum(weights)
    assert both == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(make_sft_trainer, chats, tmp_path, packing):
    options = {"train_dataset": chats, "max_steps": 6, "per_device_train_batch_size": 2, **NOISES["exact"]}
    options |= {"packing": packing, "eos_fill": 1, "gradient_accumulation_steps": 2}
    whole = make_sft_trainer(**options)
    whole.train()
    saving = {"save_strategy": "steps", "save_steps": 3, "output_dir": str(tmp_path / "saving")}
    make_sft_trainer(**options | saving).train()
    resumed = make_sft_trainer(**options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "saving" / "checkpoint-3"))
    assert logged(resumed, "loss") == logged(whole, "loss")
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters()):
        assert torch.equal(ours, theirs)


def test_training_lowers_the_loss(make_sft_trainer):
    trainer = make_sft_trainer(max_steps=30, exact_count=True, low_discrepancy=True)
    trainer.train()
    losses = logged(trainer, "loss")
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("options", [{"bf16": True}, {"gradient_checkpointing": True}], ids=["bf16", "checkpointing"])
def test_bfloat16_and_gradient_checkpointing_train_alike(make_sft_trainer, options):
    plain, other = make_sft_trainer(), make_sft_trainer(**options)
    plain.train()
    other.train()
    assert logged(other, "loss") == pytest.approx(logged(plain, "loss"), rel=0.02 if "bf16" in options else 1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_no_logits_are_computed_where_nothing_is_masked(make_sft_trainer, packing):
    trainer = make_sft_trainer(max_steps=1, packing=packing, eos_fill=0)
    shapes = []
    head = trainer.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    trainer.train()
    handle.remove()
    assert shapes == [(logged(trainer, "masked_tokens")[0], 512)]


def test_the_log_tells_masked_fraction_accuracy_levels_and_speed(make_sft_trainer):
    trainer = make_sft_trainer(**NOISES["exact"], per_device_train_batch_size=24, max_steps=2)
    trainer.train()
    for entry in trainer.state.log_history[:2]:
        # Complementary masks mask every token once in two draws.
        assert entry["masked_fraction"] == 0.5
        assert 0 <= entry["masked_accuracy"] <= 1
        assert entry["tokens_per_second"] > 0
        assert all(0 < entry[f"loss_t_{level}"] < 10 for level in ("0.25", "0.50", "0.75", "1.00"))


def test_several_draws_are_averaged(make_sft_trainer, make_model):
    trainer = make_sft_trainer(None, RecordingTrainer, num_noise_samples=3, per_device_train_batch_size=24, max_steps=1)
    trainer.train()
    ((noisy, inputs),) = trainer.seen
    model, losses = make_model(max_sequence_length=160), []
    for draw in range(3):
        rows = slice(24 * draw, 24 * draw + 24)
        logits = model(noisy.input_ids[rows], padding_mask(inputs["lengths"], inputs["input_ids"].shape[1])).logits
        token_losses = torch.nn.functional.cross_entropy(logits.mT, inputs["input_ids"], reduction="none")
        sums = (token_losses * noisy.is_masked[rows]).sum(-1) * noisy.weights[rows]
        losses.append((sums / (inputs["labels"] != -100).sum(-1)).mean().item())
    assert len({round(loss, 3) for loss in losses}) == 3
    assert logged(trainer, "loss")[0] == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_a_folder_can_be_trained_by_its_name(make_sft_trainer, make_model, tokenizer, tmp_path):
    model = make_model(max_sequence_length=160)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = {"processing_class": None, "attn_implementation": "eager", "max_steps": 1}
    trainer = make_sft_trainer(str(tmp_path / "model"), **options)
    assert trainer.model.config._attn_implementation == "eager"
    trainer.train()
    expected = make_sft_trainer(max_steps=1)
    expected.train()
    assert logged(trainer, "loss") == pytest.approx(logged(expected, "loss"), abs=LOG_PRECISION)


def test_without_options_the_defaults_hold_and_the_folder_is_named_after_the_model(
    make_model, pairs, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    trainer = LLaDASFTTrainer(make_model(max_sequence_length=160), train_dataset=pairs, processing_class=tokenizer)
    assert trainer.args.output_dir == "llada-SFT"
    assert trainer.args.learning_rate == 2.5e-5


def test_an_adapter_is_trained_alone(make_sft_trainer, chats):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make_sft_trainer(peft_config=config, train_dataset=chats, eval_dataset=chats, packing=True, eos_fill=0)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora" in name), name
    assert trainer.evaluate()["eval_loss"] < first


def test_a_model_of_another_kind_is_refused(make_sft_trainer):
    from transformers import GPT2Config, GPT2LMHeadModel

    causal = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10))
    with pytest.raises(ValueError, match=r"`model` must be a LLaDA model .*, got 'gpt2'; a causal model"):
        make_sft_trainer(causal)


def test_a_model_without_a_mask_token_is_refused(make_sft_trainer, make_model):
    model = make_model()
    model.config.mask_token_id = None
    with pytest.raises(ValueError, match=r"`model.config.mask_token_id` must be set, got None"):
        make_sft_trainer(model)


def test_rows_longer_than_the_model_knows_are_refused(make_sft_trainer):
    with pytest.raises(ValueError, match=r"at most the model's `max_sequence_length` \(160\), got 161; lower it"):
        make_sft_trainer(max_length=161)


def test_options_of_another_trainer_are_refused(make_model, pairs, tokenizer, tmp_path):
    from trl import SFTConfig

    args = SFTConfig(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="`args` must be a `LLaDASFTConfig`, got SFTConfig"):
        LLaDASFTTrainer(make_model(), args, train_dataset=pairs, processing_class=tokenizer)


@pytest.mark.parametrize("name", ["compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics"])
def test_another_loss_or_metric_is_refused(make_sft_trainer, make_model, pairs, tokenizer, name):
    args = make_sft_trainer().args
    with pytest.raises(ValueError, match=f"`{name}` must be unset"):
        LLaDASFTTrainer(make_model(), args, train_dataset=pairs, processing_class=tokenizer, **{name: print})


def test_another_collator_is_refused(make_sft_trainer):
    with pytest.raises(ValueError, match="`data_collator` must be unset, the step needs `LLaDACollator`"):
        make_sft_trainer(data_collator=print)
