"""Laws of the help: it is quick, and says what the dataclasses say."""

import dataclasses
import importlib
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from llada_cli.main import app
from llada_training.help import CLASSES, SECTIONS, UNKNOWN, options_of_command, sections_of

pytestmark = pytest.mark.newest_only


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["train", *arguments], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("command", sorted(CLASSES))
def test_the_help_read_from_the_source_is_that_of_the_dataclasses(command):
    fields = {}
    for module, name in CLASSES[command]:
        fields |= {field.name: field for field in dataclasses.fields(getattr(importlib.import_module(module), name))}
    options = options_of_command(command)
    assert options.keys() == {name for name, field in fields.items() if field.init}
    for name, option in options.items():
        given = fields[name].metadata.get("help", "").replace("%%", "%")
        assert option.help == " ".join(given.split()), name
        if option.default is not UNKNOWN:
            default = fields[name].default
            assert option.default == (str(default.value) if hasattr(default, "value") else default), name
    # Those of transformers that are computed, or made by a function.
    assert sum(option.default is UNKNOWN for option in options.values()) <= 4


@pytest.mark.parametrize("command", sorted(CLASSES))
def test_the_short_help_is_a_part_of_the_long_one_and_the_long_one_has_all(command):
    short = {option.name for _, options in sections_of(command) for option in options}
    long = [option.name for _, options in sections_of(command, everything=True) for option in options]
    assert short < set(long) == options_of_command(command).keys()
    assert len(long) == len(set(long))
    assert {"model", "train_data", "output_dir", "learning_rate", "max_steps"} <= short


def test_every_option_of_a_section_belongs_to_some_command():
    known = {name for command in CLASSES for name in options_of_command(command)}
    assert {name for names in SECTIONS.values() for name in names} <= known


def test_the_help_shows_sections_and_the_way_to_the_rest():
    printed = run("sft", "--help")
    for text in ("Usage: llada train sft", "Model and data", "LoRA", "--eos-fill", "--help-all", "[default: 2.5e-05]"):
        assert text in printed
    assert "--adam-beta2" not in printed and len(printed.splitlines()) < 120
    assert "--adam-beta2" in run("sft", "--help-all")
    assert "--use-peft" not in run("pretrain", "-h")


def test_the_help_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from typer.testing import CliRunner; from llada_cli.main import app\n"
        "assert CliRunner().invoke(app, ['train', 'grpo', '--help-all']).exit_code == 0\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'trl', 'datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
