"""Laws of `llada train sft`: from a file of examples to a complete model folder, whole or with an adapter."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from llada_training import merge_adapter, sft_main
from llada_training.adapters import AdapterOptions
from llada_training.data import load_examples
from llada_training.sft_command import parse_sft
from modeling_llada import LLaDAModelLM

from .conftest import CHECKPOINTS

pytestmark = pytest.mark.newest_only

MODEL = str(CHECKPOINTS / "mha")
MARK = "{%- generation -%}"
LAYERS = ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"]


def write_lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def turn(role: str, content: str) -> dict:
    return {"role": role, "content": content}


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A run of two steps on six short conversations, into `tmp_path / "run"`."""
    rows = [{"messages": [turn("user", f"{n}?"), turn("assistant", f"It is {n}.")]} for n in range(6)]
    options = {
        "model": MODEL,
        "train_data": write_lines(tmp_path / "chats.jsonl", rows),
        "output_dir": tmp_path / "run",
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 0.01,
        "save_steps": 1,
        "report_to": "none",
        "disable_tqdm": "true",
    }
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def weights_of(folder: Path | str) -> dict[str, torch.Tensor]:
    return LLaDAModelLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def test_the_result_is_a_complete_model_folder_with_a_loss_curve(arguments, tmp_path, capsys):
    folder = Path(
        sft_main([*arguments, "--validation_data", str(tmp_path / "chats.jsonl"), "--eval_strategy", "epoch"])
    )
    assert folder == tmp_path / "run"
    printed = capsys.readouterr().out
    assert "6 examples for train, 6 examples for validation" in printed
    assert f"Model, tokenizer and training log: {folder}" in printed
    assert (folder / "loss_curve.png").stat().st_size > 10_000
    assert {"modeling_llada.py", "config.json", "generation_config.json"} <= {path.name for path in folder.iterdir()}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert tokenizer.mask_token_id == 488
    assert MARK in tokenizer.chat_template
    before, after = weights_of(MODEL), weights_of(folder)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_run_shorter_than_its_logging_interval_has_a_loss_curve_all_the_same(arguments, tmp_path):
    sft_main([*arguments, "--logging_steps", "100", "--save_strategy", "no"])
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [2]
    assert (tmp_path / "run" / "loss_curve.png").exists()


def test_an_interrupted_run_is_continued_to_the_same_weights(arguments, tmp_path):
    sft_main(arguments)
    again = ["--output_dir", str(tmp_path / "again")]
    sft_main([*arguments, *again, "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-1")])
    expected, got = weights_of(tmp_path / "run"), weights_of(tmp_path / "again")
    assert all(torch.equal(value, got[name]) for name, value in expected.items())
    with pytest.raises(ValueError, match=r"`output_dir` must not hold checkpoints .*checkpoint-2"):
        sft_main(arguments)


# --- LoRA ------------------------------------------------------------------------------------------------------------


def test_lora_writes_the_adapter_and_the_model_with_the_adapter_added(arguments, tmp_path):
    from peft import PeftModel

    folder = Path(sft_main([*arguments, "--use_peft", "true", "--lora_r", "2", "--save_strategy", "no"]))
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    layers = {match[1] for name in adapter if (match := re.search(r"blocks\.\d+\.(\w+)\.lora_[AB]", name))}
    num_blocks = len({re.search(r"blocks\.(\d+)", name)[1] for name in adapter})
    assert layers == set(LAYERS)
    assert len(adapter) == 2 * len(LAYERS) * num_blocks  # so none on the head
    assert not (folder / "adapter_config.json").exists()
    base = LLaDAModelLM.from_pretrained(MODEL, dtype=torch.float32)
    ids = torch.arange(12)[None]
    before = base(ids).logits
    with_adapter = PeftModel.from_pretrained(base, folder / "adapter").eval()(ids).logits
    merged = LLaDAModelLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits
    torch.testing.assert_close(merged, with_adapter, atol=1e-4, rtol=1e-4)
    assert (before - with_adapter).abs().max() > 1e-3
    assert PreTrainedTokenizerFast.from_pretrained(folder).mask_token_id == 488


def test_without_merging_only_the_adapter_is_written(arguments, tmp_path):
    sft_main([*arguments, "--use_peft", "--merge_adapter", "false", "--dtype", "bfloat16", "--save_strategy", "no"])
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"use_dora": True}, "`use_dora` must be unset without `use_peft`, got True; add it"),
        ({"load_in_4bit": True}, "`load_in_4bit` must be unset without `use_peft`, got True"),
        ({"lora_target_modules": ["q_proj"]}, "`lora_target_modules` must be unset without `use_peft`"),
        ({"dtype": "bfloat16"}, "`dtype` must be float32 without `use_peft`, .*, got 'bfloat16'"),
        ({"use_peft": True, "dtype": "int8"}, "`dtype` must be one of float32, bfloat16, float16, got 'int8'"),
        ({"use_peft": True, "lora_r": 0}, "`lora_r` must be at least 1, got 0"),
        ({"use_peft": True, "lora_dropout": 1.0}, "`lora_dropout` must be at least 0 and below 1, got 1.0"),
        ({"use_peft": True, "lora_target_modules": ["o_proj"]}, "`lora_target_modules` must be of q_proj, .*'o_proj'"),
    ],
)
def test_adapter_options_that_cannot_apply_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdapterOptions(**options)


def test_an_adapter_is_not_merged_into_its_own_folder(tmp_path):
    with pytest.raises(ValueError, match="`output_dir` must not be the adapter's folder, got"):
        merge_adapter(MODEL, str(tmp_path), str(tmp_path / "."))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is there")
def test_four_bits_without_their_library_say_what_to_install(arguments):
    with pytest.raises(ImportError, match="bitsandbytes"):
        sft_main([*arguments, "--use_peft", "--load_in_4bit"])


@pytest.mark.quantization
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_over_four_bits_is_trained_and_merged_into_the_original_weights(arguments, tmp_path):
    pytest.importorskip("bitsandbytes")
    sft_main([*arguments, "--use_peft", "--load_in_4bit", "--lora_r", "2"])
    adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert any(value.any() for name, value in adapter.items() if "lora_B" in name)
    before, merged = weights_of(MODEL), weights_of(tmp_path / "run")
    name = "model.transformer.blocks.0.q_proj.weight"
    rank = torch.linalg.matrix_rank(merged[name] - before[name], rtol=1e-3)
    assert 0 < rank <= 2, "the difference is the adapter's, and no rounding to four bits"


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, message",
    [
        (["--report_to", "none"], r"`model` must name a LLaDA checkpoint .*, got None; pass --model"),
        (["--model", MODEL, "--lora_drop", "0"], "Unknown option '--lora_drop'; did you mean '--lora_dropout'"),
        (["--model", MODEL, "--use_peft", "--push_to_hub"], "`push_to_hub` must be False with `use_peft`"),
    ],
)
def test_options_that_cannot_work_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        parse_sft(given)


@pytest.mark.parametrize("text, number", [("batch", None), ("0", 0), ("4", 4)])
def test_eos_fill_is_a_word_or_a_number(text, number):
    assert parse_sft(["--model", MODEL, "--eos_fill", text])[0].num_extra_eos == number


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, columns",
    [
        ({"messages": [turn("user", "a"), turn("assistant", "b")], "text": "left out"}, ["messages"]),
        ({"completion": "b", "prompt": "a", "source": "left out"}, ["prompt", "completion"]),
        ({"input_ids": [1, 2], "labels": [-100, 2]}, ["input_ids", "labels"]),
        ({"input_ids": [1, 2]}, ["input_ids"]),
        ({"text": "a"}, ["text"]),
    ],
)
def test_examples_keep_the_columns_of_their_format(row, columns, tmp_path):
    examples = load_examples([write_lines(tmp_path / "a.jsonl", [row, row]), write_lines(tmp_path / "b.jsonl", [row])])
    assert examples.column_names == columns
    assert len(examples) == 3
    assert examples[2] == {name: row[name] for name in columns}


def test_rows_of_sharegpt_and_of_alpaca_become_messages(tmp_path):
    said = [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    sharegpt = write_lines(tmp_path / "s.jsonl", [{"conversations": said, "id": "1"}])
    rows = [
        {"instruction": "Translate.", "input": "bonjour", "output": "hello", "text": "### Instruction"},
        {"instruction": "Who?", "input": "", "output": "Me.", "text": "###"},
        {"instruction": "Who?", "input": None, "output": "Me.", "text": "###"},
    ]
    alpaca = write_lines(tmp_path / "a.jsonl", rows)
    assert load_examples([sharegpt, alpaca])["messages"][:] == [
        [turn("system", "Be kind."), turn("user", "a"), turn("assistant", "b")],
        [turn("user", "Translate.\n\nbonjour"), turn("assistant", "hello")],
        [turn("user", "Who?"), turn("assistant", "Me.")],
        [turn("user", "Who?"), turn("assistant", "Me.")],
    ]
    wrong = write_lines(tmp_path / "w.jsonl", [{"instruction": 3, "output": "a"}])
    with pytest.raises(ValueError, match="`instruction` must hold text, got int in row 0 of"):
        load_examples([wrong])
    wrong = write_lines(tmp_path / "w2.jsonl", [{"instruction": "a", "input": 3, "output": "a"}])
    with pytest.raises(ValueError, match="`input` must hold text, got 3; correct the row"):
        load_examples([wrong])


def test_a_text_file_is_one_example(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo", encoding="utf-8")
    assert load_examples([str(tmp_path / "a.txt")])[:] == {"text": ["one\ntwo"]}


def test_data_of_no_format_or_of_several_are_refused(tmp_path):
    other = write_lines(tmp_path / "other.jsonl", [{"question": "a", "answer": "b"}])
    with pytest.raises(ValueError, match=r"Examples must have the column `messages`.*got question, answer in .*other"):
        load_examples([other])
    text, pair = {"text": "a"}, {"prompt": "a", "completion": "b"}
    files = [write_lines(tmp_path / "text.jsonl", [text]), write_lines(tmp_path / "pair.jsonl", [pair])]
    with pytest.raises(ValueError, match=r"must have the same columns, got text in .*; prompt, completion in .*pair"):
        load_examples(files)
    gap = write_lines(tmp_path / "gap.jsonl", [pair, {"prompt": "a"}])
    with pytest.raises(ValueError, match=r"Every row must have a `completion`, got none in row 1 of .*gap\.jsonl"):
        load_examples([gap])


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"prompt": 1, "completion": "a"}], "`prompt` must hold text or a list of messages, got int in row 0 of"),
        (
            [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": 2}],
            "`completion` must .* int in row 1 of",
        ),
        ([{"prompt": {"a": 1}, "completion": "b"}], "`prompt` must hold text or a list of messages, got dict"),
        ([{"prompt": ["a"], "completion": "b"}], "`prompt` must hold messages, which are objects, got str"),
        ([{"text": 5}], "`text` must hold text, got int in row 0"),
        ([{"text": ["a"]}], "`text` must hold text, got list"),
        ([{"messages": []}], "`messages` must hold a list of messages, got an empty list in row 0"),
        ([{"messages": "a"}], "`messages` must hold a list of messages, got str"),
        ([{"messages": ["a"]}], "`messages` must hold messages, which are objects, got str"),
        ([{"messages": [{"role": "user"}]}], "`messages` must hold messages with a text as `content`, got None"),
        ([{"messages": [{"content": "a"}]}], "`messages` must hold messages with a text as `role`, got None"),
        (
            [{"messages": [turn("user", "a"), turn("assistant", "b")]}, {"messages": [turn("assistant", None)]}],
            "`messages` must hold messages with a text as `content`, got None in row 1 of",
        ),
        ([{"conversations": [{"from": "user", "value": 3}]}], "`conversations` must .* text as `value`, got 3"),
    ],
)
def test_values_that_are_neither_text_nor_messages_are_refused_by_row(rows, message, tmp_path):
    with pytest.raises(ValueError, match=f"{message}.*; correct the row"):
        load_examples([write_lines(tmp_path / "rows.jsonl", rows)])


def test_a_message_that_calls_tools_needs_no_words_and_words_may_come_in_parts(tmp_path):
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}], "tool_calls": None}
    silent = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    load_examples([write_lines(tmp_path / "tools.jsonl", [{"messages": [parts, silent]}])])


def test_a_folder_of_files_that_differ_is_refused(tmp_path):
    write_lines(tmp_path / "one.jsonl", [{"text": "a"}])
    write_lines(tmp_path / "two.jsonl", [{"other": [1]}])
    with pytest.raises(ValueError, match=r"(?s)must hold files of one kind with the same columns, got: .*one by one"):
        load_examples([str(tmp_path)])


def test_a_template_that_marks_no_answers_is_replaced_and_said_so(arguments, tmp_path, capsys):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MODEL, mask_token="<|mdm_mask|>")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    sft_main([*arguments, "--tokenizer", str(tmp_path / "tokenizer"), "--save_strategy", "no"])
    assert "chat template does not mark the assistant's words; LLaDA's is used" in capsys.readouterr().out
    assert MARK in PreTrainedTokenizerFast.from_pretrained(tmp_path / "run").chat_template


# --- afterwards ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_fresh_process_loads_the_result_by_its_own_code(arguments, tmp_path):
    folder = sft_main([*arguments, "--save_strategy", "no"])
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"tokenizer = AutoTokenizer.from_pretrained({folder!r}, trust_remote_code=True)\n"
        f"model = AutoModelForCausalLM.from_pretrained({folder!r}, trust_remote_code=True)\n"
        "ids = model.generate(**tokenizer('1', return_tensors='pt'), max_new_tokens=4)\n"
        "sys.exit('llada_training' in sys.modules or 'modeling_llada' in sys.modules or (ids == 488).any().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    asked = [sys.executable, "-m", "llada_cli", "chat", "--model", folder, "--max-new-tokens", "4"]
    done = subprocess.run(asked, input="1?\n", cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
