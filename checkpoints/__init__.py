"""Where the bundled model lies: `BUNDLED_MODEL`, a folder that every `from_pretrained` takes."""

from pathlib import Path

BUNDLED_MODEL: Path = Path(__file__).resolve().parent / "llada-tiny"
