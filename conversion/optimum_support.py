"""Says whether the runtimes, and versions of Optimum that can export and run LLaDA, are installed."""

from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

from packaging.requirements import Requirement

# Runtime -> the distributions its exporter and its classes need, in the versions of the extra `optimum`.
NEEDED = {
    "onnx": ("transformers", "optimum", "optimum-onnx", "onnxruntime"),
    "openvino": ("transformers", "optimum", "optimum-intel", "openvino"),
}
_WAY_OUT = "make an environment for it: make setup-optimum, or pip install 'llada-hf[optimum]' in a new one."


def installed_version(name: str) -> str | None:
    """Return a distribution's version, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def require_packages(modules: Iterable[str], extra: str) -> None:
    """Raise unless every module can be imported.

    Raises:
        ImportError: naming the extra of this package that brings them.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"The export needs {', '.join(f'`{name}`' for name in missing)}; install it with: "
            f"pip install 'llada-hf[{extra}]'"
        )


def optimum_problem(runtime: str) -> str | None:
    """Say what keeps Optimum from working with LLaDA; None if nothing does.

    Args:
        runtime: `onnx` or `openvino`.
    """
    return find_problem(NEEDED[runtime], requires("llada-hf") or [], installed_version)


def require_optimum(runtime: str, name: str) -> None:
    """Raise unless Optimum works.

    Args:
        runtime: `onnx` or `openvino`.
        name: what needs it.

    Raises:
        ImportError: saying what is missing or too new.
    """
    problem = optimum_problem(runtime)
    if problem is not None:
        raise ImportError(f"`{name}` needs Optimum, and {problem}; {_WAY_OUT}")


def find_problem(
    names: Iterable[str], requirements: Iterable[str], find_version: Callable[[str], str | None]
) -> str | None:
    """Compare what is installed with the requirements of the extra `optimum`.

    Args:
        names: distributions to look at.
        requirements: requirements of this package, as its metadata lists them.
        find_version: the installed version of a distribution, None if there is none.
    """
    parsed = [Requirement(text) for text in requirements]
    wanted = {each.name: each for each in parsed if each.marker and each.marker.evaluate({"extra": "optimum"})}
    for name in names:
        found = find_version(name)
        if found is None:
            return f"`{name}` is not installed"
        if name in wanted and not wanted[name].specifier.contains(found, prereleases=True):
            return f"`{name}` must be {wanted[name].specifier}, got {found}"
    return None
