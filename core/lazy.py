"""Packages whose names are imported when they are first used, so that `--help` waits for no torch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def attach(
    package: str, homes: dict[str, list[str]], extra: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make `__getattr__`, `__dir__` and `__all__` of a package from one list.

    Args:
        package: the package's `__name__`.
        homes: the package's files, without `.py`, or modules of other packages, with the public names of each.
        extra: of this distribution's extras the one that brings what the files import.

    Example:
        >>> __getattr__, __dir__, __all__ = attach("llada_core", {"tokenization": ["MASK_TOKEN"]})
        >>> __getattr__("MASK_TOKEN"), __all__
        ('<|mdm_mask|>', ['MASK_TOKEN'])

    Source: PEP 562, module `__getattr__`.
    """
    home_of = {name: file for file, names in homes.items() for name in names}

    def get_attribute(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with requires_extra(extra, f"`{name}`"):
            home = home_of[name]
            return getattr(import_module(home if "." in home else f".{home}", package), name)

    return get_attribute, lambda: sorted(home_of), list(home_of)


@contextmanager
def requires_extra(extra: str | None, user: str) -> Iterator[None]:
    """Say which extra brings a package that is not installed.

    Args:
        extra: one of this distribution's extras. None: such an error passes as it is.
        user: who needs the package, as the message begins.

    Raises:
        ImportError: if the block imports a package that is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if extra is None:
            raise
        package = str(error.name).partition(".")[0]
        raise ImportError(f"{user} needs the package `{package}`; install it with: {install_line(extra)}") from error


def install_line(extra: str) -> str:
    """The command that installs one of this distribution's extras; no package index has it, so a checkout is needed."""
    return f'pip install ".[{extra}]" in the checkout'
