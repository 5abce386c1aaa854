"""Laws of packing: documents that share a row do not see each other, and are trained like rows of their own."""

import pytest
import torch
from datasets import Dataset
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface

from llada_training import LLaDACollator
from llada_training.batch import check_attention, pack_rows
from llada_training.sft_data import best_fit, pack_examples
from tests import flash_stand_in

ROWS = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "example_id": 3, "is_cut": False},
    {"input_ids": [8, 9], "labels": [-100, 9], "example_id": 0, "is_cut": True},
    {"input_ids": [1, 2, 3, 4], "labels": [-100, 2, 3, 4], "example_id": 2, "is_cut": False},
]


def test_documents_fill_rows_best_fit_the_longest_first():
    assert best_fit([2, 5, 3, 4, 1], 6) == [[1, 4], [3, 0], [2]]


def test_every_document_has_one_row_and_no_row_is_too_long():
    lengths = torch.randint(1, 40, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = best_fit(lengths, 40)
    assert sorted(document for row in rows for document in row) == list(range(500))
    assert max(sum(lengths[document] for document in row) for row in rows) <= 40
    assert len(rows) <= sum(lengths) / 40 * 1.05 + 1


def test_packed_examples_keep_what_they_were():
    packed = pack_examples(Dataset.from_list(ROWS), capacity=8, num_eos=1)
    assert packed["example_id"][:] == [[2, 0], [3]]
    assert packed["input_ids"][:] == [[[1, 2, 3, 4], [8, 9]], [[5, 6, 7]]]
    assert packed["labels"][0] == [[-100, 2, 3, 4], [-100, 9]]
    assert packed["is_cut"][:] == [[False, True], [False]]


def test_end_of_text_tokens_have_their_room():
    # Four tokens and three more are too many for a row of eight with the truncated two.
    assert pack_examples(Dataset.from_list(ROWS), capacity=8, num_eos=3)["example_id"][:] == [[2], [3, 0]]


def test_packed_documents_are_collated_as_rows():
    packed = pack_examples(Dataset.from_list(ROWS), capacity=8, num_eos=1)
    batch = LLaDACollator(0)(list(packed))
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [8, 9, 0, 0], [5, 6, 7, 0]]
    assert batch["example_id"].tolist() == [2, 0, 3]
    assert batch["is_cut"].tolist() == [False, True, False]
    assert batch["lengths"].tolist() == [4, 2, 3]
    assert batch["packed_row"].tolist() == [0, 0, 1]


def test_positions_restart_and_masks_are_block_diagonal():
    ids = torch.tensor([[1, 2, 0], [3, 4, 5], [6, 0, 0]])
    masked = ids == torch.tensor([2, 4, 6])[:, None]
    packed = pack_rows(ids, masked, torch.tensor([2, 3, 1]), torch.tensor([0, 0, 1]))
    assert packed["input_ids"].tolist() == [[1, 2, 3, 4, 5], [6, 0, 0, 0, 0]]
    assert packed["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 0, 0, 0, 0]]
    assert packed["logits_positions"].tolist() == [[False, True, False, True, False], [True] + [False] * 4]
    first, second = packed["attention_mask"][:, 0]
    assert first.int().tolist() == [[1, 1, 0, 0, 0]] * 2 + [[0, 0, 1, 1, 1]] * 3
    assert second[0].tolist() == [True] + [False] * 4


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash", "flex_attention"])
def test_packed_logits_are_those_of_separate_rows(make_model, attention):
    torch.compiler.reset()
    model, separate = make_model().eval(), make_model().eval()
    model.set_attn_implementation(flash_stand_in.register() if attention == "flash" else attention)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([7, 12, 3, 9])
    ids = torch.randint(0, 480, (4, 12), generator=generator)
    scored = (torch.rand(4, 12, generator=generator) < 0.6) & (torch.arange(12) < lengths[:, None])
    rows = pack_rows(ids, scored, lengths, torch.tensor([0, 0, 1, 1]), model.config._attn_implementation)
    with torch.no_grad():  # flex attention does not train on a CPU
        packed = model(**rows).logits
        alone = [
            separate(ids[i : i + 1, :n], logits_positions=scored[i : i + 1, :n]).logits
            for i, n in enumerate(lengths.tolist())
        ]
    alone = torch.cat(alone)
    assert (packed - alone).norm() < 4e-7 * alone.norm()


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash"])
@pytest.mark.parametrize("noise", [{}, {"num_noise_samples": 2, "complementary_masks": True, "exact_count": True}])
def test_packed_training_is_that_of_separate_rows(make_sft_trainer, make_model, chats, attention, noise):
    options = {"train_dataset": chats, "eos_fill": 1, "optim": "sgd", "learning_rate": 0.1, "max_steps": 2, **noise}
    model = make_model(max_sequence_length=160)
    model.set_attn_implementation(flash_stand_in.register() if attention == "flash" else attention)
    # All examples in every step, so that packing cannot change which ones a step has.
    packed = make_sft_trainer(model, packing=True, per_device_train_batch_size=20, **options)
    assert len(packed.train_dataset) < 20
    separate = make_sft_trainer(per_device_train_batch_size=20, **options)
    packed.train()
    separate.train()
    losses = [
        [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (packed, separate)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for ours, theirs in zip(packed.model.parameters(), separate.model.parameters()):
        assert (ours - theirs).abs().max() < 1e-6


def test_lengths_and_block_masks_take_memory_that_grows_with_the_tokens_only():
    class Largest(TorchDispatchMode):
        """Notes the most elements of a tensor that any operation returns."""

        num_elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            output = func(*args, **(kwargs or {}))
            sizes = [
                one.untyped_storage().nbytes() // one.element_size()
                for one in tree_leaves(output)
                if isinstance(one, torch.Tensor)
            ]
            self.num_elements = max([self.num_elements, *sizes])
            return output

    ids, lengths = torch.ones(4, 1000, dtype=torch.long), torch.tensor([1000, 900, 500, 400])
    rows = torch.tensor([0, 0, 1, 1])
    for attention, most in ((flash_stand_in.register(), 4000), ("flex_attention", 4096), ("sdpa", 2 * 1900**2)):
        with Largest() as largest:
            pack_rows(ids, ids > 0, lengths, rows, attention)
        assert largest.num_elements <= most
    assert largest.num_elements == most


def test_a_row_of_flash_attention_has_all_documents_and_where_they_end():
    ids = torch.tensor([[1, 2, 0], [3, 4, 5], [6, 0, 0]])
    masked = ids == torch.tensor([2, 4, 6])[:, None]
    rows = pack_rows(ids, masked, torch.tensor([2, 3, 1]), torch.tensor([0, 0, 1]), flash_stand_in.register())
    assert rows["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6]] and rows["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0]]
    assert rows["logits_positions"].int().tolist() == [[0, 1, 0, 1, 0, 1]]
    assert rows["cu_seq_lens_q"].tolist() == rows["cu_seq_lens_k"].tolist() == [0, 2, 5, 6]
    assert rows["max_length_q"] == rows["max_length_k"] == 3 and "attention_mask" not in rows


def test_block_masks_look_into_the_blocks_that_share_a_document():
    lengths, rows = torch.tensor([100, 100, 300, 20]), torch.tensor([0, 0, 0, 1])
    ids = torch.ones(4, 300, dtype=torch.long)
    mask = pack_rows(ids, ids > 0, lengths, rows, "flex_attention")["attention_mask"]
    assert mask.shape == (2, 1, 500, 500)
    first, second = mask.to_dense()[:, 0].tolist()
    assert first == [[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]]
    # What is left of a row attends to itself.
    assert second == [[1] * 4] * 4


def test_attention_whose_masks_are_not_known_is_refused(make_sft_trainer, make_model):
    AttentionInterface.register("unknown_masks", flash_stand_in.flash_stand_in)
    for name in ("eager", "sdpa", "flash_attention_2", "flex_attention"):
        check_attention(name)
    model = make_model(max_sequence_length=160)
    model.set_attn_implementation("unknown_masks")
    with pytest.raises(ValueError, match=r"`packing` needs an attention implementation .*'unknown_masks'; register"):
        make_sft_trainer(model, packing=True, eos_fill=0)
