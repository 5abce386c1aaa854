"""Pre-train a toy LLaDA from Python on a dozen sentences, in less than a minute on a CPU, and let it fill in words.

    python examples/pretrain_from_scratch.py --output runs/toy

It learns the sentences by heart; more is not to be had from a dozen. Needs the extra `train`.
"""

import argparse

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, set_seed

from llada_training import LLaDAPretrainingConfig, LLaDAPretrainingTrainer, pack_documents
from modeling_llada import LLaDAConfig, LLaDAModelLM

SENTENCES = [
    f"the {animal} {verb} {where}"
    for animal, verb, where in (
        ("cat", "sleeps", "on the warm stove"), ("dog", "guards", "the house at night"),
        ("horse", "pulls", "the cart up the hill"), ("owl", "hunts", "mice in the dark"),
        ("bee", "visits", "every flower in the garden"), ("frog", "sings", "beside the pond"),
        ("fox", "steals", "a hen from the farm"), ("cow", "gives", "milk in the morning"),
        ("mole", "digs", "tunnels under the lawn"), ("stork", "builds", "a nest on the chimney"),
        ("trout", "swims", "against the stream"), ("hen", "lays", "an egg in the straw"),
    )
]  # fmt: skip
EOS, MASK, UNKNOWN = "<|endoftext|>", "<|mdm_mask|>", "<|unknown|>"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word."""
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    vocabulary = {word: index for index, word in enumerate([EOS, MASK, UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS, mask_token=MASK)


def make_model(tokenizer: PreTrainedTokenizerFast) -> LLaDAModelLM:
    """A fresh model, two layers deep."""
    config = LLaDAConfig(
        d_model=64,
        n_layers=2,
        n_heads=4,
        mlp_hidden_size=192,
        vocab_size=len(tokenizer),
        max_sequence_length=32,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LLaDAModelLM(config)


def train(model: LLaDAModelLM, tokenizer: PreTrainedTokenizerFast, output: str, steps: int) -> None:
    """Train on the sentences and save the model folder, tokenizer included."""
    # Sentences follow each other in the training sequences; repeated, they meet in many orders.
    documents = Dataset.from_dict({"text": SENTENCES * 16}).shuffle(seed=0)
    data = pack_documents(documents, tokenizer, 32, len(tokenizer), tokenizer.mask_token_id)
    args = LLaDAPretrainingConfig(
        output_dir=output,
        sequence_length=32,
        random_length_probability=0.5,  # half of the sequences shorter, as the prompts below are
        per_device_train_batch_size=16,
        max_steps=steps,
        learning_rate=4e-3,
        exact_count=True,
        low_discrepancy=True,
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        seed=0,
    )
    trainer = LLaDAPretrainingTrainer(model, args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()


def main() -> None:
    """Train, then infill and generate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder for the trained model")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps")
    options = parser.parse_args()
    set_seed(0)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    train(model, tokenizer, options.output, options.steps)
    model.eval()
    for text in (f"the {MASK} sings beside the {MASK}", f"the owl hunts {MASK} {MASK} {MASK} {MASK} {EOS}"):
        ids = model.infill(**tokenizer(text, return_tensors="pt", return_token_type_ids=False))
        print(f"{text}\n    {tokenizer.decode(ids[0], skip_special_tokens=True)}")
    prompt = tokenizer("the horse", return_tensors="pt", return_token_type_ids=False)
    print(
        "the horse …\n   ", tokenizer.decode(model.generate(**prompt, max_new_tokens=12)[0], skip_special_tokens=True)
    )


if __name__ == "__main__":
    main()
