"""Pages of the site that nobody writes: the reference of the public names, and the files that guides link elsewhere.

A hook of MkDocs (see `mkdocs.yml`). On GitHub a guide links `../examples/generate.py` or `../README.md`; the site shows
these files as pages below `source/` and bends the links, so that the same text is right in both places.
"""

import ast
import json
import os
import posixpath
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Where mkdocstrings finds the packages under their installed names, without importing them.
LINKS = ROOT / "build" / "packages"
REFERENCE = (
    "modeling_llada",
    "llada_core",
    "llada_training",
    "llada_conversion",
    "llada_evaluation",
    "llada_serving",
)
# Files that are shown as a page with their text, by suffix, with the language of its colours.
CODE = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".ipynb": "python", "": "text"}
# A link or an image, not to a scheme and not to an anchor of its own page: before, target, anchor.
LINK = re.compile(r"(\]\()(?![a-z]+:|#|//)([^)#\s]+)(#[^)\s]*)?(?=\))")
# The reason why no test runs a block stands behind its language; Python-Markdown then sees no block there.
NO_RUN = re.compile(r"^(```\w+) no-run\b.*$", flags=re.MULTILINE)
FENCE = re.compile(r"^(```.*?^```$)", flags=re.DOTALL | re.MULTILINE)


@event_priority(100)
def on_config(config: Any) -> Any:
    """Link every package's folder from its installed name, before mkdocstrings looks for them."""
    LINKS.mkdir(parents=True, exist_ok=True)
    for package, folder in package_folders().items():
        link = LINKS / package
        if link.is_symlink():
            link.unlink()
        link.symlink_to(ROOT / folder)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the reference, and what the guides link outside of the documentation's folder, and what that links."""
    for package in REFERENCE:
        page = reference_page(package, ROOT / package_folders()[package] / "__init__.py")
        files.append(File.generated(config, f"reference/{package}.md", content=page))
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages() if not file.generated_by]
    waiting += ["CONTRIBUTING.md", "CHANGELOG.md"]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        text = page_text(path)
        if site_path(path) not in files.src_uris:
            content = {"abs_src_path": str(ROOT / path)} if text is None else {"content": text}
            files.append(File.generated(config, site_path(path), **content))
        waiting += linked_files(text or "", path)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Bend the links that lead out of the documentation's folder, and leave the reason of a `no-run` block out."""
    uri = page.file.src_uri
    if uri.startswith("reference/"):
        return markdown
    return bend_links(NO_RUN.sub(r"\1", markdown), repository_path(uri))


# --- the reference ----------------------------------------------------------------------------------------------------


def package_folders() -> dict[str, str]:
    """Installed name to folder, as `pyproject.toml` has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["tool"]["setuptools"]["package-dir"]


def public_names(source: str, package: str) -> dict[str, list[str]]:
    """The public names of a package by the module that defines them, read from its `__init__.py`.

    A package either calls `attach(__name__, {module: names})`, or imports from its modules what `__all__` lists.

    Args:
        source: of `__init__.py`.
        package: its name.
    """
    found: dict[str, list[str]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module != "lazy":
            found[f"{package}.{node.module}"] = [alias.name for alias in node.names]
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and len(node.value.args) > 1:
            homes = ast.literal_eval(node.value.args[1])
            found |= {home if "." in home else f"{package}.{home}": names for home, names in homes.items()}
    return found


def reference_page(package: str, init: Path) -> str:
    """The page of a package: its sentence, then each module's public names with their docstrings."""
    source = init.read_text(encoding="utf-8")
    parts = [f"# {package}", ast.get_docstring(ast.parse(source)) or ""]
    for module, names in public_names(source, package).items():
        parts += [f"## `{module}`", *(f"::: {module}.{name}" for name in names)]
    return "\n\n".join(parts) + "\n"


# --- files outside of docs/ -------------------------------------------------------------------------------------------


def site_path(path: str) -> str:
    """Where the site has a file of the repository; text that is no Markdown becomes a page."""
    if path.startswith("docs/") and not (ROOT / path).is_dir():
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"source/{path}/index.md"
    return f"source/{path}.md" if PurePosixPath(path).suffix in CODE else f"source/{path}"


def repository_path(uri: str) -> str:
    """The inverse of `site_path`."""
    if not uri.startswith("source/"):
        return f"docs/{uri}"
    path = uri.removeprefix("source/")
    if path.endswith("/index.md"):
        return path.removesuffix("/index.md")
    return path if (ROOT / path).exists() else path.removesuffix(".md")


def page_text(path: str) -> str | None:
    """The page of a file or folder of the repository, with the links that it has there; None of what is no text."""
    place = ROOT / path
    if place.is_dir():
        names = sorted(entry.name for entry in place.iterdir() if entry.is_file())
        return f"# {path}\n\n" + "\n".join(f"- [{name}]({posixpath.basename(path)}/{name})" for name in names) + "\n"
    suffix = PurePosixPath(path).suffix
    if suffix == ".md":
        return place.read_text(encoding="utf-8")
    if suffix not in CODE:
        return None
    if suffix == ".ipynb":
        cells = json.loads(place.read_text(encoding="utf-8"))["cells"]
        fences = {"markdown": "{}", "code": "```python\n{}\n```"}
        return "\n\n".join(fences[cell["cell_type"]].format("".join(cell["source"])) for cell in cells) + "\n"
    return f"# {path}\n\n````{CODE[suffix]}\n{place.read_text(encoding='utf-8')}\n````\n"


def linked_files(text: str, path: str) -> Iterator[str]:
    """The files and folders of the repository that a page at `path` links."""
    for _, target, _ in LINK.findall(FENCE.sub("", text)):
        linked = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if not linked.startswith("..") and (ROOT / linked).exists():
            yield linked


def bend_links(markdown: str, path: str) -> str:
    """Replace the links of a page at `path` in the repository by those that lead to the same file in the site."""
    here = posixpath.dirname(site_path(path))

    def bend(match: re.Match[str]) -> str:
        linked = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))
        if linked.startswith("..") or not (ROOT / linked).exists():
            return match[0]
        return match[1] + os.path.relpath(site_path(linked), here or ".") + (match[3] or "")

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(bend, part) for part in parts)
