"""Laws of the data: what is a response, what is cut, and which data cannot be learnt from."""

from copy import deepcopy

import pytest
from datasets import Dataset

from llada_training.sft_data import finish_examples, number_examples

RAW_TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|eot_id|>' }}{% endfor %}"


def finish(rows, max_length=8, **options):
    dataset = number_examples(Dataset.from_list(rows))
    limits = {"eos_token_id": 7, "mask_token_id": 99, "vocab_size": 90} | options
    return finish_examples(dataset, "train", max_length, **limits)


def row(ids, labels=None):
    return {"input_ids": ids, "labels": ids if labels is None else labels}


def decode(tokenizer, example):
    """What is learnt of an example, and what is not."""
    pairs = list(zip(example["input_ids"], example["labels"]))
    learnt = tokenizer.decode([token for token, label in pairs if label != -100])
    given = tokenizer.decode([token for token, label in pairs if label == -100])
    return given, learnt


def test_one_eos_at_the_end_is_left_to_the_trainer():
    assert finish([row([1, 2, 7]), row([1, 7, 7]), row([1, 7, 2])])["input_ids"][:] == [[1, 2], [1, 7], [1, 7, 2]]


def test_a_row_ends_with_its_last_response():
    (example,) = finish([row([1, 2, 3, 4], [-100, 2, -100, -100])])
    assert (example["input_ids"], example["labels"], example["is_cut"]) == ([1, 2], [-100, 2], False)


def test_an_answer_is_cut_only_where_it_goes_on_beyond_the_limit():
    rows = [
        row([1, 2, 3, 4, 5], [-100, 2, 3, 4, 5]),  # goes on
        row([1, 2, 3], [-100, 2, 3]),  # ends with the limit
        row([1, 2, 3, 4, 5], [-100, 2, 3, -100, 5]),  # the next turn is lost, this one is whole
        row([1, 2, 3, 4, 5], [-100, 2, -100, -100, 5]),  # the limit falls into the next prompt
        row([1, 2, 3, 7], [-100, 2, 3, 7]),  # only EOS is beyond it
    ]
    finished = finish(rows, max_length=3)
    assert finished["is_cut"][:] == [True, False, False, False, False]
    assert finished["input_ids"][:] == [[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2], [1, 2, 3]]


def test_examples_without_a_response_are_counted_and_the_first_is_named():
    rows = [row([1, 2]), row([1, 2, 3], [-100, -100, 3]), row([1, 2]), row([4, 5, 6], [-100, -100, 6])]
    with pytest.warns(
        UserWarning,
        match=r"2 of 4 examples of the train data have no response tokens left within "
        r"`max_length` \(2\), the first is example 1; they are left out",
    ):
        finished = finish(rows, max_length=2)
    assert finished["example_id"][:] == [0, 2]


def test_data_without_any_response_are_refused():
    with pytest.raises(ValueError, match=r"2 of 2 examples .*, the first is example 0; raise `max_length`, or shorten"):
        finish([row([1, 2], [-100, -100]), row([7])])


def test_a_mask_token_in_the_data_is_refused_and_the_example_named():
    with pytest.raises(ValueError, match=r"must not hold the mask token \(id 99\), .*, got it in example 1; remove"):
        finish([row([1]), row([2, 99])])


def test_an_id_beyond_the_model_is_refused_and_the_example_named():
    with pytest.raises(ValueError, match=r"below the model's `embedding_size` \(90\), got 90 in example 1"):
        finish([row([1]), row([2, 90])])


def test_an_id_below_zero_is_refused_and_the_example_named():
    with pytest.raises(ValueError, match=r"must be at least 0, got -1 in example 1; use"):
        finish([row([1]), row([2, -1])])


@pytest.mark.parametrize("label, rule", [(90, "below the model's"), (-1, "at least 0, got -1"), (99, "hold the mask")])
def test_a_label_is_a_token_that_can_be_hidden(label, rule):
    with pytest.raises(ValueError, match=rf"{rule}.* in the labels of example 1"):
        finish([row([1]), row([2, 3], [-100, label])])


def test_every_token_has_a_label():
    with pytest.raises(ValueError, match=r"`labels` must be as many as `input_ids`, got 1 and 2 in example 0"):
        finish([row([1, 2], [1])])


def test_numbers_that_the_data_bring_are_kept():
    dataset = Dataset.from_dict({"example_id": [5, 3], "text": ["a", "b"]})
    assert number_examples(dataset)["example_id"][:] == [5, 3]


def test_of_a_conversation_only_the_assistants_words_are_learnt(make_sft_trainer, tokenizer, chats):
    example = make_sft_trainer(train_dataset=chats).train_dataset[1]
    given, learnt = decode(tokenizer, example)
    assert learnt == "yes yes<|eot_id|>It is 1.<|eot_id|>"
    assert given.startswith("<|startoftext|><|start_header_id|>user<|end_header_id|>")
    assert "1?" in given and "So?" in given
    assert not example["is_cut"]


def said(role, content, names=("role", "content")):
    return dict(zip(names, (role, content)))


SHAREGPT = ("from", "value")


@pytest.mark.parametrize(
    "rows",
    [
        {"prompt": [[said("user", "x"), said("assistant", "y"), said("user", "a")]],
         "completion": [[said("assistant", "b")]]},
        {"conversations": [[said("user", "a", SHAREGPT), said("assistant", "b", SHAREGPT)]]},
        {"conversations": [[said("human", "a", SHAREGPT), said("gpt", "b", SHAREGPT)]]},
        {"instruction": ["a"], "input": [""], "output": ["b"]},
    ],
)  # fmt: skip
def test_prompts_and_completions_may_be_messages_and_those_of_sharegpt_and_alpaca_are_known(
    make_sft_trainer, tokenizer, rows
):
    _, learnt = decode(tokenizer, make_sft_trainer(train_dataset=Dataset.from_dict(rows)).train_dataset[0])
    assert learnt == "b<|eot_id|>"


def test_of_prompt_and_completion_the_completion_is_learnt(make_sft_trainer, tokenizer, pairs):
    given, learnt = decode(tokenizer, make_sft_trainer(train_dataset=pairs).train_dataset[5])
    assert (given, learnt) == ("5 and 5 make", " 10, I say 10, I say 10, I say")


def test_of_a_text_every_token_is_learnt(make_sft_trainer, tokenizer):
    trainer = make_sft_trainer(train_dataset=Dataset.from_dict({"text": ["all of it"]}))
    assert decode(tokenizer, trainer.train_dataset[0]) == ("", "all of it")


def test_examples_keep_their_numbers_through_shuffling_packing_and_several_evaluation_sets(make_sft_trainer, pairs):
    options = {"shuffle_dataset": True, "packing": True, "eos_fill": 0}
    trainer = make_sft_trainer(eval_dataset={"one": pairs, "train": pairs.select([3, 4])}, **options)
    numbers = [number for row in trainer.train_dataset["example_id"] for number in row]
    assert sorted(numbers) == list(range(24)) and numbers != list(range(24))
    assert sorted(trainer.eval_dataset["train"]["example_id"]) == [0, 1]
    packed = {
        number: ids
        for numbers, rows in zip(trainer.train_dataset["example_id"], trainer.train_dataset["input_ids"])
        for number, ids in zip(numbers, rows)
    }
    for number, ids in zip(trainer.eval_dataset["one"]["example_id"], trainer.eval_dataset["one"]["input_ids"]):
        assert packed[number] == ids


@pytest.mark.parametrize(("template", "got"), [(RAW_TEMPLATE, "one without it"), (None, "none")])
def test_a_template_that_marks_no_responses_is_refused(make_sft_trainer, tokenizer, chats, template, got):
    bare = deepcopy(tokenizer)
    bare.chat_template = template
    with pytest.raises(ValueError, match=f"must mark the assistant's words by .*, got {got}; attach LLaDA's"):
        make_sft_trainer(train_dataset=chats, processing_class=bare)


def test_a_conversation_without_the_assistant_is_refused_and_named(make_sft_trainer, chats):
    messages = [*chats["messages"][:2], [{"role": "user", "content": "Anyone?"}]]
    with pytest.raises(ValueError, match="turn of the role 'assistant', got none in example 2 of the train data"):
        make_sft_trainer(train_dataset=Dataset.from_dict({"messages": messages}))


def test_a_completion_without_the_assistant_is_refused_and_named(make_sft_trainer):
    asked = {"role": "user", "content": "Anyone?"}
    rows = Dataset.from_dict({"prompt": [[asked]], "completion": [[asked]]})
    with pytest.raises(ValueError, match="turn of the role 'assistant', got none in example 0 of the train data"):
        make_sft_trainer(train_dataset=rows)


def test_an_answer_that_is_missing_is_refused_and_named(make_sft_trainer, chats):
    messages = [*chats["messages"][:2], [{"role": "user", "content": "?"}, {"role": "assistant", "content": None}]]
    with pytest.raises(ValueError, match="messages with a text as `content`, got None in row 2 of the train data"):
        make_sft_trainer(train_dataset=Dataset.from_dict({"messages": messages}))
    pairs = {"prompt": ["a", "b"], "completion": ["c", None]}
    with pytest.raises(ValueError, match="Every row must have a `completion`, got none in row 1 of the train data"):
        make_sft_trainer(train_dataset=Dataset.from_dict(pairs))


def test_a_tokenizer_without_eos_is_refused(make_sft_trainer, tokenizer):
    bare = deepcopy(tokenizer)
    bare.eos_token = bare.pad_token = None
    with pytest.raises(ValueError, match="`tokenizer` must have an EOS token, which ends every answer, got none"):
        make_sft_trainer(processing_class=bare)


def test_streams_and_empty_data_are_refused_for_validation(make_sft_trainer, pairs):
    with pytest.raises(
        ValueError, match=r"eval data must be a `datasets.Dataset`.*, got IterableDataset; only the train"
    ):
        make_sft_trainer(eval_dataset=pairs.to_iterable_dataset())
    with pytest.raises(ValueError, match="The eval data must hold at least one example, got none"):
        make_sft_trainer(eval_dataset={"eval": pairs.select([])})
