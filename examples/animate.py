"""Draw a run of the bundled model, or of the checkpoint named after the file: the canvas being filled in.

python examples/animate.py docs/images/canvas.svg
python examples/animate.py canvas.gif GSAI-ML/LLaDA-8B-Instruct
"""

import sys

import torch

from llada_core.animation import write_animation
from llada_core.loading import load_checkpoint
from llada_core.recorder import Recorder
from llada_core.tokenization import encode_chat

QUESTION = "What is the largest planet in the solar system?"

checkpoint = load_checkpoint(sys.argv[2] if len(sys.argv) > 2 else None, dtype="auto")
ids = torch.tensor([encode_chat(checkpoint.tokenizer, [{"role": "user", "content": QUESTION}])])
# Sees every pass and changes none: it is the streamer and a logits processor of the call.
recorder = Recorder(checkpoint.tokenizer, checkpoint.stop_ids)
checkpoint.model.generate(
    ids.to(checkpoint.model.device),
    max_new_tokens=32,
    threshold=0.9,
    streamer=recorder,
    logits_processor=[recorder],
)
write_animation(sys.argv[1], recorder.frames, checkpoint.tokenizer, QUESTION)
