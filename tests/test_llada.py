"""The package `llada`: one place for every public name, imported when it is used."""

import re
import subprocess
import sys
from collections import Counter
from importlib import import_module
from importlib.metadata import version

import pytest

import llada


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def value_of(module, name: str):
    """The object, or what its import says here: Optimum's classes need an older transformers."""
    try:
        return getattr(module, name)
    except ImportError as error:
        return str(error)


@pytest.mark.newest_only
def test_it_has_every_public_name_of_the_packages_once() -> None:
    for package in llada.PACKAGES:
        for name in import_module(package).__all__:
            assert value_of(llada, name) == value_of(import_module(package), name), f"{package}.{name}"
            assert name in dir(llada)
    assert [name for name, count in Counter(llada.__all__).items() if count > 1] == []


def test_every_package_with_public_names_is_covered() -> None:
    from tests.test_imports import PACKAGES

    assert set(llada.PACKAGES) == {*PACKAGES.values()} - {"llada", "llada_cli", "llada_checkpoints"}


def test_its_version_is_that_of_the_distribution() -> None:
    assert llada.__version__ == version("llada-hf")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'llada' has no attribute '_nothing'"):
        _ = llada._nothing
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from llada import nothing  # noqa: F401


def test_importing_it_imports_neither_torch_nor_transformers() -> None:
    assert run("import sys, llada; print(sorted({'torch', 'transformers'} & set(sys.modules)))") == "[]"


@pytest.mark.newest_only
@pytest.mark.parametrize(
    "package, extra, name", [("trl", "train", "LLaDASFTTrainer"), ("lm_eval", "eval", "LLaDAHarnessModel")]
)
def test_a_name_whose_extra_is_not_installed_says_which_one(package, extra, name, monkeypatch) -> None:
    home = getattr(llada, name).__module__
    for loaded in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, loaded, None)
    monkeypatch.delitem(sys.modules, home)
    expected = f'`{name}` needs the package `{package}`; install it with: pip install ".[{extra}]" in the checkout'
    with pytest.raises(ImportError, match=re.escape(expected)):
        getattr(llada, name)
