"""Laws at the seams to TRL and transformers: what would silently train something else raises, or cannot happen."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, Trainer, TrainingArguments

from llada_core.diffusion import low_discrepancy_noise_levels
from modeling_llada import LLaDAModelLM

QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "max_steps": 1}


def test_a_deep_copy_of_a_model_in_training_runs_on_its_own_weights(make_sft_trainer):
    trainer = make_sft_trainer()
    ids = torch.tensor([[1, 488, 3]])
    twin = copy.deepcopy(trainer.model)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    assert not trainer.model(ids).logits.any()
    assert twin(ids).logits.any()


def test_a_forward_that_stood_on_the_model_is_put_back(make_sft_trainer, make_model):
    model = make_model(max_sequence_length=160)
    own = model.forward
    model.forward = own
    assert make_sft_trainer(model).model.forward == own


@pytest.mark.parametrize("peft", [False, True])
def test_trls_own_trainer_ends_in_an_error_that_names_ours(make_model, pairs, tokenizer, tmp_path, peft):
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    options = {"peft_config": LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")} if peft else {}
    args = SFTConfig(str(tmp_path), **QUIET)
    trainer = SFTTrainer(make_model(), args, train_dataset=pairs, processing_class=copy.deepcopy(tokenizer), **options)
    with pytest.raises(ValueError, match=r"only learn to copy its input.* `LLaDASFTTrainer`"):
        trainer.train()


def test_the_fused_head_of_causal_trainers_is_refused(make_model):
    from trl.trainer.utils import add_fused_lm_head

    model = make_model()
    add_fused_lm_head(model)
    ids = torch.tensor([[1, 488, 3]])
    with pytest.raises(ValueError, match=r"`use_cache` must be left out .*, got False. .*`fused_lm_head=True`"):
        model(input_ids=ids, labels=ids, fused_lm_head=True)
    with pytest.raises(TypeError, match="fused_lm_head"):
        make_model()(input_ids=ids, fused_lm_head=True)


def test_transformers_own_trainer_on_clean_text_ends_in_an_error_that_names_ours(make_model, tmp_path):
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 8, "labels": [[1, 2, 3]] * 8})
    trainer = Trainer(make_model(), TrainingArguments(str(tmp_path), **QUIET), train_dataset=rows)
    with pytest.raises(ValueError, match=r"only learn to copy its input.* `LLaDASFTTrainer`"):
        trainer.train()


def test_no_label_is_ever_shifted(make_model):
    model, ids, clean = make_model(), torch.tensor([[5, 488, 7, 488]]), torch.tensor([[5, 6, 7, 8]])
    log_probs = model(ids).logits.log_softmax(-1)
    expected = -(log_probs[0, 1, 6] + log_probs[0, 3, 8]) / 2
    assert model(ids, labels=clean).loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert model.loss_type == "ForMaskedLM"


def test_gradients_do_not_grow_with_accumulation(make_sft_trainer):
    norms = []
    for size in (8, 2):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        trainer = make_sft_trainer(max_steps=1, **options)
        trainer.train()
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_a_step_is_divided_by_its_own_items_and_not_by_means_of_its_batches(make_sft_trainer):
    # Twenty rows in batches of six leave a last batch of two.
    rows = {"prompt": ["a"] * 20, "completion": ["b " * (1 + 5 * (i > 17)) for i in range(20)]}
    options = {"train_dataset": Dataset.from_dict(rows), "max_steps": 1, "optim": "sgd", "data_seed": 3}
    for normalization in ("answer", "token"):
        options["loss_normalization"] = normalization
        whole = make_sft_trainer(per_device_train_batch_size=20, **options)
        split = make_sft_trainer(per_device_train_batch_size=6, gradient_accumulation_steps=4, **options)
        whole.train()
        split.train()
        losses = [trainer.state.log_history[0]["loss"] for trainer in (whole, split)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5, abs=1e-4)


def test_evaluation_noise_is_a_function_of_the_example(make_sft_trainer, pairs):
    trainer = make_sft_trainer(eval_dataset=pairs)
    inputs = trainer.data_collator([trainer.eval_dataset[i] for i in (5, 9)])
    _, sums, ids = trainer.prediction_step(trainer.model, inputs, False)
    alone = trainer.data_collator([trainer.eval_dataset[9]])
    _, other, _ = trainer.prediction_step(trainer.model, alone, False)
    assert ids.tolist() == [5, 9]
    assert torch.allclose(sums[1], other[0], rtol=1e-5)
    assert sums[:, 0].tolist() == low_discrepancy_noise_levels(ids).tolist()
    # Masks of exact count: ceil(t L) of the answer and its one EOS.
    assert sums[:, 1].tolist() == (sums[:, 0].double() * sums[:, 5]).ceil().tolist()


def test_an_evaluation_before_training_changes_nothing(make_sft_trainer, pairs):
    plain, evaluated = make_sft_trainer(), make_sft_trainer(eval_dataset=pairs)
    evaluated.evaluate()
    plain.train()
    evaluated.train()
    for ours, theirs in zip(plain.model.parameters(), evaluated.model.parameters()):
        assert torch.equal(ours, theirs)


def test_a_missing_pad_token_becomes_eos_on_tokenizer_and_model(make_sft_trainer, make_model, tokenizer):
    bare, model = copy.deepcopy(tokenizer), make_model(max_sequence_length=160, pad_token_id=None)
    bare.pad_token = None
    trainer = make_sft_trainer(model, processing_class=bare)
    trainer.train()
    assert bare.pad_token == "<|endoftext|>"
    assert model.config.pad_token_id == 481


def test_chats_end_with_eos_and_truncated_answers_do_not(make_sft_trainer, chats):
    trainer = make_sft_trainer(train_dataset=chats, turns="all", max_length=64)
    batch = trainer.data_collator(list(trainer.train_dataset))
    ((settled,), _) = trainer.get_batch_samples(iter([batch]), 1, batch["input_ids"].device)
    cut = settled["is_cut"]
    assert 0 < cut.sum() < len(cut)
    lengths = settled["lengths"]
    assert (lengths <= 64).all()
    for row, length in enumerate(lengths.tolist()):
        is_eos = settled["input_ids"][row, :length] == 481
        assert is_eos.any() != cut[row]
        assert (settled["labels"][row, :length][is_eos] == 481).all()


def test_the_closing_token_of_a_turn_is_learnt(make_sft_trainer, tokenizer, chats):
    example = make_sft_trainer(train_dataset=chats).train_dataset[0]
    assert tokenizer.convert_ids_to_tokens(example["labels"][-1]) == "<|eot_id|>"


def test_a_saved_model_is_reloaded_by_its_name(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    from trl.trainer.utils import create_model_from_path

    assert type(create_model_from_path(str(tmp_path))) is LLaDAModelLM
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM):
        assert type(auto.from_pretrained(tmp_path)) is LLaDAModelLM


def test_a_model_given_by_name_must_be_complete(make_sft_trainer, make_model, tmp_path):
    """TRL would load it with random numbers in place of what is missing."""
    model = make_model()
    state = model.state_dict()
    model.save_pretrained(tmp_path / "whole")
    trainer = make_sft_trainer(str(tmp_path / "whole"))
    assert all(torch.equal(ours, state[name]) for name, ours in trainer.model.state_dict().items())
    state.pop("model.transformer.blocks.1.ff_out.weight")
    model.save_pretrained(tmp_path / "cut", state_dict=state)
    with pytest.raises(ValueError, match="ff_out"):
        make_sft_trainer(str(tmp_path / "cut"))


def test_a_checkpoint_of_the_trainer_loads_everywhere(make_sft_trainer, tmp_path):
    trainer = make_sft_trainer(output_dir=str(tmp_path / "out"), save_strategy="steps", save_steps=3)
    trainer.train()
    folder = tmp_path / "out" / "checkpoint-3"
    loaded = LLaDAModelLM.from_pretrained(folder, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), trainer.model.parameters()))
    assert '"PreTrainedTokenizerFast"' in (folder / "tokenizer_config.json").read_text()
