"""The files of a Space: the demo, the packages that it imports, and a model."""

from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

# What runs the page, in the order in which a file imports the next; `llada_checkpoints` only by name.
_PACKAGES = ("llada_core", "modeling_llada", "llada_checkpoints")
_SUFFIXES = (".py", ".jinja", ".md")
# The Space gets the versions that are installed here. Gradio's stands in the card.
_REQUIREMENTS = ("huggingface-hub", "jinja2", "numpy", "safetensors", "torch", "transformers")
CARD = """---
title: {title}
emoji: ░
colorFrom: indigo
colorTo: green
sdk: gradio
sdk_version: {gradio}
app_file: app.py
pinned: false
short_description: Text by unmasking, pass by pass
---

Chat with a masked diffusion language model, have gaps filled, and go back through the passes.
"""


def space_files(model: Mapping[str, Path | bytes], title: str) -> dict[str, Path | bytes]:
    """Collect what a Space holds, by path.

    Args:
        model: the files of a model folder, by name.
        title: of the Space.

    Raises:
        ImportError: without Gradio, whose version the Space gets.
    """
    files: dict[str, Path | bytes] = {f"model/{name}": content for name, content in model.items()}
    for package in _PACKAGES:
        (folder,) = find_spec(package).submodule_search_locations  # type: ignore[union-attr,misc]
        paths = sorted(path for path in Path(folder).iterdir() if path.suffix in _SUFFIXES)
        files |= {f"{package}/{path.name}": path for path in paths}
    # Without what follows a +, which names a build for one kind of machine.
    pins = [f"{name}=={version(name).partition('+')[0]}\n" for name in _REQUIREMENTS]
    files["app.py"] = Path(__file__).with_name("demo.py")
    files["requirements.txt"] = "".join(pins).encode()
    files["README.md"] = CARD.format(title=title, gradio=version("gradio")).encode()
    return dict(sorted(files.items()))
