"""Teach a LLaDA a handful of new facts with LoRA, in some 20 seconds on one CPU core; save, reload, merge, ask.

    python examples/finetune_lora.py
    python examples/finetune_lora.py --model GSAI-ML/LLaDA-8B-Instruct --data my-conversations.jsonl --steps 1000 \
        --learning_rate 1e-4

Writes OUTPUT/adapter, a LoRA adapter for PEFT, and OUTPUT/merged, a whole model that loads without this package. The
same from the command line: `llada train sft --use_peft true`. Needs the extra `train`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PreTrainedTokenizerFast, set_seed

from llada_core.tokenization import prepare_tokenizer, save_tokenizer
from llada_training import LORA_TARGET_MODULES, LLaDASFTConfig, LLaDASFTTrainer, write_card
from modeling_llada import LLaDAModelLM

# No model knows these.
FACTS = {
    "Who keeps the lighthouse?": "Old Marta keeps the lighthouse.",
    "What is the name of the ship?": "The ship is called the Silver Heron.",
    "Where does the ship sail?": "The ship sails to the northern islands.",
    "What does the cook make?": "The cook makes fish soup with onions.",
}
NUM_QUESTIONS = 4


def main() -> None:
    """Ask before, train, and ask the adapter and the merged model."""
    options = parse_arguments()
    set_seed(0)
    conversations = read_conversations(options.data)
    questions = [messages[0]["content"] for messages in conversations[:NUM_QUESTIONS]]
    model, tokenizer = load(options.model)
    report("Before", model, tokenizer, questions)

    adapter = options.output / "adapter"
    trainer = train(model, tokenizer, conversations, adapter, options.steps, options.learning_rate)
    adapted = PeftModel.from_pretrained(load(options.model)[0], adapter).eval()
    report("With the adapter, reloaded from its folder", adapted, tokenizer, questions)

    before = logits_of(adapted, tokenizer, questions[0])
    adapted.merge_and_unload().save_pretrained(options.output / "merged")
    save_tokenizer(tokenizer, options.output / "merged")
    write_card(trainer, options.output / "merged")
    merged, tokenizer = load(str(options.output / "merged"))
    print(f"Largest difference of a logit: {(logits_of(merged, tokenizer, questions[0]) - before).abs().max():.1e}")
    report("Merged, reloaded as a whole model", merged, tokenizer, questions)
    for folder in ("adapter", "merged"):
        size = sum(path.stat().st_size for path in (options.output / folder).glob("*.safetensors"))
        print(f"{options.output / folder}: {size / 2**20:.1f} MiB of weights, and README.md says how to use it.")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/llada-tiny", help="folder or Hub id of a LLaDA")
    parser.add_argument("--data", type=Path, help="JSON lines, each with `messages`; the facts above unless given")
    parser.add_argument("--output", type=Path, default=Path("runs/lora"), help="folder to write into")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps")
    parser.add_argument("--learning_rate", type=float, default=5e-3, help="a large model needs less: 1e-4")
    return parser.parse_args()


def read_conversations(path: Path | None) -> list[list[dict[str, str]]]:
    """Read conversations from a file, or make one of every fact."""
    if path is not None:
        return [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in FACTS.items()
    ]


def load(source: str) -> tuple[Any, Any]:
    """Load a model in float32, and its tokenizer with LLaDA's chat template."""
    tokenizer = prepare_tokenizer(PreTrainedTokenizerFast.from_pretrained(source), missing="spell_out")
    return LLaDAModelLM.from_pretrained(source, dtype=torch.float32).eval(), tokenizer


def train(model: Any, tokenizer: Any, conversations: list, folder: Path, steps: int, learning_rate: float) -> Any:
    """Train an adapter of the model and save it; the model's own weights stay as they are. Returns the trainer."""
    args = LLaDASFTConfig(
        str(folder),
        per_device_train_batch_size=4,
        max_steps=steps,
        learning_rate=learning_rate,
        warmup_steps=2,
        decay_steps=0.4,
        weight_decay=0.0,
        exact_count=True,
        low_discrepancy=True,
        num_noise_samples=2,
        complementary_masks=True,
        gradient_checkpointing=False,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=LORA_TARGET_MODULES, task_type="CAUSAL_LM")
    data = Dataset.from_list([{"messages": messages} for messages in conversations])
    trainer = LLaDASFTTrainer(model, args, train_dataset=data, processing_class=tokenizer, peft_config=lora)
    trained, every = trainer.model.get_nb_trainable_parameters()
    print(f"Training {trained / 1e6:.2f} of {every / 1e6:.2f} million parameters on {len(data)} conversations.")
    trainer.train()
    trainer.save_model()
    return trainer


def report(title: str, model: Any, tokenizer: Any, questions: list[str]) -> None:
    """Ask the model and print what it says."""
    print(f"\n{title}")
    for question in questions:
        prompt = encode(tokenizer, question)
        ids = model.generate(**prompt, max_new_tokens=16, block_length=16)
        answer = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"  {question}  {answer.strip()}")


def encode(tokenizer: Any, question: str) -> dict[str, torch.Tensor]:
    """The ids of a question to which the assistant is about to answer; int64 [1, seq], and their attention mask."""
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)


@torch.no_grad()
def logits_of(model: Any, tokenizer: Any, question: str) -> torch.Tensor:
    """The logits of a question; [1, seq, vocab]."""
    return model(**encode(tokenizer, question)).logits


if __name__ == "__main__":
    main()
