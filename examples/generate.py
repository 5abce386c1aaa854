"""Complete, infill, guide, draw and stream with the bundled model, or with the checkpoint named on the command line.

python examples/generate.py
python examples/generate.py GSAI-ML/LLaDA-8B-Base
"""

import sys

import torch
from transformers import PreTrainedTokenizerFast, TextStreamer

from llada_checkpoints import BUNDLED_MODEL
from llada_core.tokenization import prepare_tokenizer
from modeling_llada import LLaDAModelLM

folder = sys.argv[1] if len(sys.argv) > 1 else BUNDLED_MODEL
device = "cuda" if torch.cuda.is_available() else "cpu"
model = LLaDAModelLM.from_pretrained(folder, dtype="auto").to(device)
# Declares the mask token, which the official tokenizers leave out; Base has no chat tokens.
tokenizer = prepare_tokenizer(PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left"), missing="spell_out")


def encode(*texts: str) -> dict[str, torch.Tensor]:
    """Token ids and attention mask of a batch, padded at the left."""
    return tokenizer(list(texts), return_tensors="pt", padding=True).to(device)


def show(title: str, ids: torch.Tensor) -> None:
    """Print every row of a batch."""
    print(f"\n{title}")
    for text in tokenizer.batch_decode(ids, skip_special_tokens=True):
        print("   ", text.replace("\n", "\n    "))


prompts = encode("The capital of Italy is", "A baby cat is called", "The opposite of hot is")

show("Greedy, three prompts of different lengths at once:", model.generate(**prompts, max_new_tokens=32))

# Half the passes of the model, two tokens at a time.
fewer = model.generate(**prompts, max_new_tokens=32, steps=16, return_dict_in_generate=True)
show(f"{fewer.num_forward_passes.tolist()} passes of the model:", fewer.sequences)

# One generator per row: a row's draws do not depend on its neighbours.
generators = [torch.Generator(device).manual_seed(row) for row in range(3)]
show("Drawn:", model.generate(**prompts, max_new_tokens=32, temperature=0.8, top_p=0.9, generator=generators))

show("Guided by the prompt twice as strongly:", model.generate(**prompts, max_new_tokens=32, cfg_scale=1.0))

# Each mask stands for one token, its leading space included.
mask = tokenizer.mask_token
masked = encode(f"The capital of{mask} is Rome.", f"A{mask * 3} is a kind of bird.")
show("Infilled:", model.infill(**masked))

print("\nStreamed, block by block:")
streamer = TextStreamer(tokenizer, skip_special_tokens=True)
model.generate(
    **encode("The largest planet in the solar system is"), max_new_tokens=64, block_length=8, streamer=streamer
)
