"""Laws of the site: every guide is listed, every public name has its place, links mean the same file everywhere."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import llada
from tests.helpers import ROOT

GUIDES = {path.name for path in (ROOT / "docs").glob("*.md")}


@pytest.fixture(scope="module")
def site() -> ModuleType:
    """The hook `docs/site.py`, as MkDocs loads it."""
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "docs" / "site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_guide_is_in_the_menu_and_in_the_table_of_contents() -> None:
    menu = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    contents = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for name in GUIDES - {"index.md"}:
        assert f"'{name}'" in menu and f"({name})" in contents, name


def test_every_public_name_is_in_the_reference(site) -> None:
    listed = set()
    for package in site.REFERENCE:
        init = ROOT / site.package_folders()[package] / "__init__.py"
        page = site.reference_page(package, init)
        assert page.startswith(f"# {package}\n\n")
        listed |= set(re.findall(r"^::: [\w.]+\.(\w+)$", page, flags=re.MULTILINE))
    assert set(llada.__all__) <= listed


@pytest.mark.parametrize(
    "path, before, after",
    [
        ("docs/index.md", "[a](training.md#data)", "[a](training.md#data)"),
        ("docs/index.md", "[a](../README.md#use)", "[a](source/README.md#use)"),
        ("docs/index.md", "[a](../examples/generate.py)", "[a](source/examples/generate.py.md)"),
        ("docs/results/quality.md", "[a](../../LICENSE)", "[a](../source/LICENSE.md)"),
        ("README.md", "![a](docs/images/canvas.svg)", "![a](../images/canvas.svg)"),
        ("README.md", "[a](docs/training.md)", "[a](../training.md)"),
        ("docs/evaluation.md", "[a](results/offline)", "[a](source/docs/results/offline/index.md)"),
        ("docs/index.md", "[a](https://arxiv.org/abs/2502.09992)", "[a](https://arxiv.org/abs/2502.09992)"),
        ("docs/index.md", "```\n[a](../README.md)\n```", "```\n[a](../README.md)\n```"),
        ("docs/index.md", "[a](missing.md)", "[a](missing.md)"),
    ],
)
def test_a_link_leads_to_the_same_file_in_the_site_as_in_the_repository(site, path, before, after) -> None:
    assert site.bend_links(before, path) == after


@pytest.mark.parametrize("path", ["docs/training.md", "README.md", "examples/generate.py", "docs/results/offline"])
def test_a_page_of_the_site_knows_its_file(site, path) -> None:
    assert site.repository_path(site.site_path(path)) == path


@pytest.mark.parametrize("name", sorted(GUIDES))
def test_every_code_block_of_a_guide_is_one_in_the_site(site, name) -> None:
    markdown = pytest.importorskip("markdown")
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    html = markdown.markdown(site.NO_RUN.sub(r"\1", text), extensions=["tables", "toc", "pymdownx.superfences"])
    assert "```" not in html
    assert html.count("<h2") == len(re.findall("^## ", site.FENCE.sub("", text), flags=re.MULTILINE))


def test_a_folder_becomes_a_list_of_its_files(site) -> None:
    text = site.page_text("docs/results/offline")
    linked = list(site.linked_files(text, "docs/results/offline"))
    assert linked and all((ROOT / path).is_file() for path in linked)
    assert len(linked) == len(list(Path(ROOT, "docs/results/offline").iterdir()))


def test_a_notebook_becomes_its_text_and_code(site) -> None:
    text = site.page_text("notebooks/quickstart.ipynb")
    assert text.startswith("# LLaDA in five minutes") and "```python\nfrom llada import load_checkpoint" in text
