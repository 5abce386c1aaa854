"""Every public name of the project in one place: `from llada import LLaDAModelLM, LLaDASFTTrainer, load_checkpoint`.

Nothing is imported before a name is used. What belongs to an extra (`train`, `eval` …) says which
one it needs where that is not installed.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

# In this order a name is looked for; the last are the slowest to import.
PACKAGES = ("modeling_llada", "llada_core", "llada_conversion", "llada_training", "llada_evaluation", "llada_serving")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("llada-hf")
    if name == "__all__":
        return [name for package in PACKAGES for name in import_module(package).__all__]
    if not name.startswith("_"):
        for package in map(import_module, PACKAGES):
            if name in package.__all__:
                return getattr(package, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__getattr__("__all__"), "__all__", "__version__"])
