"""Laws of the loader on damaged weights: transformers would fill missing tensors with random numbers."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import REFERENCE

load_checkpoint = pytest.importorskip("llada_core.loading").load_checkpoint

PROJECTION = "model.transformer.blocks.0.q_proj.weight"
HEAD = "model.transformer.ff_out.weight"
SHARD = "model-00003-of-00005.safetensors"
WEIGHTS = "model.safetensors"


def cut_off(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def without(*tensors: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        kept = {name: weight for name, weight in weights.items() if name not in tensors}
        save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


# What happened to which folder, and what the error names.
DAMAGES = {
    "cut weights": ("mha", cut_off(WEIGHTS), "weights of `.*mha`"),
    "cut shard": ("mha_sharded", cut_off(SHARD), "weights of `.*mha_sharded`"),
    "no tensor": ("mha", without(PROJECTION), rf"`.*mha` .*`{PROJECTION}`"),
    "no configuration": ("mha", lambda folder: (folder / "config.json").write_text("null"), r"config\.json of `.*mha`"),
    "no head": ("mha", without(HEAD, PROJECTION), rf"`.*mha` .*2 tensors?.*`{PROJECTION}`"),
}


@pytest.mark.parametrize("name, damage, message", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_weights_are_refused_by_name(name, damage, message, tmp_path) -> None:
    folder = Path(shutil.copytree(REFERENCE / "checkpoints" / name, tmp_path / name))
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


def test_a_tied_head_is_not_missing() -> None:
    assert load_checkpoint(REFERENCE / "checkpoints" / "tied").model.config.weight_tying
