"""Laws of the pre-training trainer: the same training however the optimizer step is split, resumed or evaluated."""

import pytest
import torch
import transformers

from llada_training import LLaDAPretrainingTrainer
from llada_training.noise import draw_noise

# transformers 4 rounds the losses that it logs to four places.
LOG_PRECISION = 1e-5 if int(transformers.__version__.split(".")[0]) > 4 else 2e-4


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize(
    "noise",
    [{}, {"exact_count": True, "low_discrepancy": True}],
    ids=["independent", "exact-low-discrepancy"],
)
def test_a_batch_of_eight_trains_like_eight_accumulated_batches_of_one(make_trainer, noise):
    # Plain gradient descent: AdamW's first steps blow rounding up to the sign of a gradient.
    options = {"optim": "sgd", "learning_rate": 0.1, **noise}
    whole = make_trainer(per_device_train_batch_size=8, **options)
    split = make_trainer(per_device_train_batch_size=1, gradient_accumulation_steps=8, **options)
    assert whole.train().training_loss == pytest.approx(split.train().training_loss, rel=LOG_PRECISION)
    assert logged(whole, "loss") == pytest.approx(logged(split, "loss"), abs=LOG_PRECISION)
    for ours, theirs in zip(whole.model.parameters(), split.model.parameters()):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_training_takes_the_mark_of_an_untrained_conversion_away(make_trainer):
    trainer = make_trainer(max_steps=1)
    trainer.model.config.is_untrained = True
    trainer.train()
    assert "is_untrained" not in trainer.model.config.to_dict()


def test_the_logged_loss_is_the_bound_per_token_of_the_whole_step(make_trainer, make_model, sequences):
    trainer = make_trainer(random_length_probability=0.0, per_device_train_batch_size=64, max_steps=1)
    trainer.train()
    model, total, num_tokens = make_model(), 0.0, 0
    levels = torch.tensor([level_of(trainer, index) for index in range(64)])
    for index, row in enumerate(sequences["input_ids"]):
        ids = torch.tensor([row])
        noisy = draw_noise(ids, ids, torch.tensor([index]), levels[index : index + 1], 488, 7, 0)
        log_probs = model(noisy.input_ids).logits.log_softmax(-1)
        token_losses = -log_probs.gather(-1, ids[..., None])[..., 0]
        probability = 0.999 * levels[index] + 0.001
        total += (token_losses[noisy.is_masked] / probability).sum().item()
        num_tokens += ids.numel()
    assert logged(trainer, "loss")[0] == pytest.approx(total / num_tokens, rel=1e-4)


def level_of(trainer, index):
    from llada_training import training_noise_levels

    example = torch.tensor([index])
    return training_noise_levels(example, example, trainer.args.seed, 0).item()


def test_training_lowers_the_loss(make_trainer):
    trainer = make_trainer(max_steps=30, exact_count=True, low_discrepancy=True)
    trainer.train()
    losses = logged(trainer, "loss")
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(make_trainer, tmp_path):
    options = {"max_steps": 12, "gradient_accumulation_steps": 2, "exact_count": True, "low_discrepancy": True}
    whole = make_trainer(**options)
    whole.train()
    saving = make_trainer(**options, save_strategy="steps", save_steps=5, output_dir=str(tmp_path / "saving"))
    saving.train()
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "saving" / "checkpoint-5"))
    assert logged(resumed, "loss") == logged(whole, "loss")
    assert logged(resumed, "masked_accuracy")[5:] == logged(whole, "masked_accuracy")[5:]
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters()):
        assert torch.equal(ours, theirs)


def test_the_evaluation_loss_does_not_depend_on_the_batch(make_trainer):
    results = [make_trainer(per_device_eval_batch_size=size).evaluate() for size in (1, 7, 16)]
    for name in ("eval_loss", "eval_masked_fraction", "eval_masked_accuracy", "eval_loss_t_0.25", "eval_loss_t_1.00"):
        values = [result[name] for result in results]
        assert values == pytest.approx([values[0]] * 3, rel=1e-6), name


def test_the_evaluation_depends_neither_on_the_seed_nor_on_the_step(make_trainer):
    first = make_trainer(seed=1).evaluate()["eval_loss"]
    other = make_trainer(seed=2)
    other.state.global_step = 9
    assert other.evaluate()["eval_loss"] == first


def test_an_untrained_model_is_as_good_as_guessing(make_trainer):
    loss = make_trainer().evaluate()["eval_loss"]
    # Logits of a fresh model have variance of about one, which adds half a nat to log 512.
    assert loss == pytest.approx(torch.tensor(512.0).log().item() + 0.5, abs=0.4)


def test_the_log_tells_masked_fraction_accuracy_levels_and_speed(make_trainer):
    trainer = make_trainer(exact_count=True, low_discrepancy=True, per_device_train_batch_size=32, max_steps=2)
    trainer.train()
    for entry in trainer.state.log_history[:2]:
        assert 0.4 < entry["masked_fraction"] < 0.6
        assert 0 <= entry["masked_accuracy"] < 0.2
        assert entry["tokens_per_second"] > 0
        levels = [entry[f"loss_t_{level}"] for level in ("0.25", "0.50", "0.75", "1.00")]
        assert all(4 < loss < 10 for loss in levels)


@pytest.mark.parametrize("options", [{"bf16": True}, {"gradient_checkpointing": True}], ids=["bf16", "checkpointing"])
def test_bfloat16_and_gradient_checkpointing_train_alike(make_trainer, options):
    plain, other = make_trainer(), make_trainer(**options)
    plain.train()
    other.train()
    assert logged(other, "loss") == pytest.approx(logged(plain, "loss"), rel=0.02 if "bf16" in options else 1e-5)


def test_no_logits_are_computed_where_nothing_is_masked(make_trainer):
    trainer = make_trainer(max_steps=1)
    seen = []
    handle = trainer.model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(tuple(output.shape))
    )
    trainer.train()
    handle.remove()
    entry = trainer.state.log_history[0]
    num_tokens = round(entry["masked_tokens"] / entry["masked_fraction"])
    assert seen == [(entry["masked_tokens"], 512)]
    assert entry["masked_tokens"] < num_tokens < 8 * 24


def test_a_model_of_another_kind_is_refused(make_trainer, sequences):
    from transformers import GPT2Config, GPT2LMHeadModel

    causal = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10))
    with pytest.raises(ValueError, match=r"`model` must be a LLaDA model .*, got 'gpt2'; a causal model"):
        LLaDAPretrainingTrainer(causal, make_trainer().args, train_dataset=sequences)


def test_a_model_without_a_mask_token_is_refused(make_model, make_trainer, sequences):
    model = make_model()
    model.config.mask_token_id = None
    with pytest.raises(ValueError, match=r"`model.config.mask_token_id` must be set, got None"):
        LLaDAPretrainingTrainer(model, make_trainer().args, train_dataset=sequences)


def test_data_without_example_ids_is_refused(make_model, make_trainer, sequences):
    with pytest.raises(ValueError, match=r"`train_dataset` must have the columns .*, got input_ids; make it with"):
        LLaDAPretrainingTrainer(make_model(), make_trainer().args, train_dataset=sequences.select_columns("input_ids"))


@pytest.mark.parametrize("name", ["compute_metrics", "compute_loss_func"])
def test_another_loss_or_metric_is_refused(make_model, make_trainer, name):
    with pytest.raises(ValueError, match=f"`{name}` must be unset"):
        LLaDAPretrainingTrainer(make_model(), make_trainer().args, **{name: print})
