"""The GGUF file holds what llama.cpp reads; the `gguf` package reads it back."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from llada_cli.main import app
from llada_conversion import export_gguf
from llada_conversion.gguf_file import find_pre_tokenizer, interleave_pairs

gguf = pytest.importorskip("gguf")

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS = ROOT / "tests" / "reference" / "checkpoints"
MHA, TIED = CHECKPOINTS / "mha", CHECKPOINTS / "tied"
BUNDLED = ROOT / "checkpoints" / "llada-tiny"


def read(path: Path) -> tuple[dict, dict]:
    """The file's fields, and its tensors as float32 in PyTorch's order of axes."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    return {name: field.contents() for name, field in reader.fields.items()}, tensors


def test_pairs_that_are_half_a_head_apart_become_neighbours():
    rows = torch.arange(8.0)[:, None]  # two heads of width 4, which turn (0, 2), (1, 3) and (4, 6), (5, 7)
    assert interleave_pairs(rows, num_heads=2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_metadata_are_the_config_s(tmp_path):
    fields, _ = read(export_gguf(MHA, tmp_path / "mha.gguf"))
    expected = {
        "general.architecture": "llada",
        "general.file_type": 1,
        "llada.block_count": 2,
        "llada.context_length": 256,
        "llada.embedding_length": 64,
        "llada.feed_forward_length": 176,
        "llada.attention.head_count": 4,
        "llada.attention.head_count_kv": 4,
        "llada.attention.causal": False,
        "llada.rope.freq_base": 500000.0,
        "llada.rope.dimension_count": 16,
        "llada.vocab_size": 512,
        "diffusion.shift_logits": False,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 480,
        "tokenizer.ggml.eos_token_id": 481,
        "tokenizer.ggml.padding_token_id": 481,
        "tokenizer.ggml.mask_token_id": 488,
        "tokenizer.ggml.eot_token_id": 491,
    }
    assert {name: fields.get(name) for name in expected} == expected
    assert fields["llada.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_llama_cpp_begins_a_text_with_bos_if_the_tokenizer_does(adds_bos, tmp_path):
    source = shutil.copytree(MHA, tmp_path / "source")
    parts = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    bos = [{"SpecialToken": {"id": "<|startoftext|>", "type_id": 0}}] if adds_bos else []
    texts = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    tokens = {"<|startoftext|>": {"id": "<|startoftext|>", "ids": [480], "tokens": ["<|startoftext|>"]}}
    template = {"single": bos + texts[:1], "pair": bos + texts, "special_tokens": tokens if adds_bos else {}}
    parts["post_processor"] = {"type": "TemplateProcessing", **template}
    (source / "tokenizer.json").write_text(json.dumps(parts), encoding="utf-8")
    fields, _ = read(export_gguf(source, tmp_path / "mha.gguf"))
    assert fields["tokenizer.ggml.bos_token_id"] == 480
    assert fields["tokenizer.ggml.add_bos_token"] is adds_bos


def test_every_row_of_the_embedding_has_a_token(tmp_path):
    fields, tensors = read(export_gguf(MHA, tmp_path / "mha.gguf"))
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == tensors["token_embd.weight"].shape[0] == 512
    assert (tokens[488], kinds[488]) == ("<|mdm_mask|>", gguf.TokenType.CONTROL)
    assert (tokens[511], kinds[511]) == ("[PAD511]", gguf.TokenType.UNUSED)
    assert kinds[0] == gguf.TokenType.NORMAL


def test_the_tensors_are_the_checkpoint_s_under_llama_cpp_s_names(tmp_path):
    _, tensors = read(export_gguf(MHA, tmp_path / "mha.gguf", weights="f32"))
    weights = load_file(MHA / "model.safetensors")
    blocks = "model.transformer.blocks.1"
    same = {
        "token_embd": "model.transformer.wte",
        "output_norm": "model.transformer.ln_f",
        "output": "model.transformer.ff_out",
        "blk.1.attn_norm": f"{blocks}.attn_norm",
        "blk.1.attn_v": f"{blocks}.v_proj",
        "blk.1.attn_output": f"{blocks}.attn_out",
        "blk.1.ffn_norm": f"{blocks}.ff_norm",
        "blk.1.ffn_gate": f"{blocks}.ff_proj",
        "blk.1.ffn_up": f"{blocks}.up_proj",
        "blk.1.ffn_down": f"{blocks}.ff_out",
    }
    for name, official in same.items():
        assert torch.equal(tensors[f"{name}.weight"], weights[f"{official}.weight"].float()), name
    order = [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15]  # one head of width 16
    rows = torch.tensor([16 * head + row for head in range(4) for row in order])
    for name, official in (("attn_q", "q_proj"), ("attn_k", "k_proj")):
        assert torch.equal(tensors[f"blk.1.{name}.weight"], weights[f"{blocks}.{official}.weight"].float()[rows])
    assert len(tensors) == 3 + 9 * 2


def test_a_tied_head_is_left_out(tmp_path):
    assert "output.weight" not in read(export_gguf(TIED, tmp_path / "tied.gguf"))[1]


@pytest.mark.parametrize("weights, kind, gap", [("f16", "F16", 1e-3), ("q8_0", "Q8_0", 1e-2)])
def test_matrices_are_stored_as_asked_and_norms_in_float32(tmp_path, weights, kind, gap):
    path = export_gguf(MHA, tmp_path / "mha.gguf", weights=weights)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds["output_norm.weight"] == kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == kind
    # 32 does not divide 176, the width of this matrix.
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    exact, stored = load_file(MHA / "model.safetensors"), read(path)[1]["blk.0.attn_v.weight"]
    expected = exact["model.transformer.blocks.0.v_proj.weight"].float()
    assert (stored - expected).abs().max() <= gap * expected.abs().max()


def test_the_bundled_model_needs_no_name_of_its_splitting_rule(tmp_path):
    fields, _ = read(export_gguf(BUNDLED, tmp_path / "tiny.gguf"))
    assert fields["tokenizer.ggml.pre"] == "smollm"
    assert all(len(merge.split(" ")) == 2 for merge in fields["tokenizer.ggml.merges"])


@pytest.mark.parametrize("document", ["docs/quickstart.md", "docs/conversion.md"])
def test_the_documents_commands_export_the_bundled_model(document, tmp_path):
    text = (ROOT / document).read_text(encoding="utf-8")
    (command,) = re.findall(r"^llada (export gguf checkpoints/.*)$", text, flags=re.MULTILINE)
    arguments = shlex.split(command, comments=True)
    arguments[2:4] = [str(ROOT / arguments[2]), str(tmp_path / arguments[3])]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert read(Path(arguments[3]))[0]["tokenizer.ggml.pre"] == "smollm"


# --- the rule that splits text ---------------------------------------------------------------------------------------

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])


def tokenizer_with(rule, ignore_merges=False, words=()):
    """A byte-level BPE tokenizer of the bytes and `words`, each of two bytes, that splits by `rule`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, *words])}
    model = models.BPE(vocabulary, [tuple(word) for word in words], ignore_merges=ignore_merges)
    backend = Tokenizer(model)
    backend.pre_tokenizer, backend.decoder = rule, decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize(
    "name, rule, ignore_merges",
    [
        ("gpt-2", GPT2, False),
        ("gpt-2", split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), False),
        ("smollm", pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]), False),
        ("llama-bpe", split(rf"{CONTRACTIONS}{WORDS}|\p{{N}}{{1,3}}{REST}"), True),
        ("smaug-bpe", split(rf"{CONTRACTIONS}{WORDS}|\p{{N}}{{1,3}}{REST}"), False),
        ("qwen2", split(rf"{CONTRACTIONS}{WORDS}|\p{{N}}{REST}"), False),
        ("bailingmoe", split(BAILING), False),
    ],
)
def test_a_known_splitting_rule_has_llama_cpp_s_name(name, rule, ignore_merges):
    assert find_pre_tokenizer(tokenizer_with(rule, ignore_merges)) == name


@pytest.mark.parametrize(
    "rule, ignore_merges, shown",
    [
        # In a sequence, since transformers 4 sets the field of a lone one.
        (pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=True)]), False, '"add_prefix_space": true'),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), GPT2]), False, "Digits"),
        (pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), GPT2]), False, "Punctuation"),
        (split(r"\S+|\s+"), False, r"S\+"),
        (GPT2, True, "use_regex"),
    ],
)
def test_an_unknown_splitting_rule_is_named_and_needs_a_name(rule, ignore_merges, shown):
    with pytest.raises(ValueError, match=f"`pre_tokenizer` must be given: this tokenizer splits .*{shown}.*Pass --pre"):
        find_pre_tokenizer(tokenizer_with(rule, ignore_merges))


def test_the_bundled_rule_is_smollm_s_unless_spaces_merge(tmp_path):
    parts = json.loads((BUNDLED / "tokenizer.json").read_text(encoding="utf-8"))
    rule = split(parts["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"])
    other = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])
    text = "Add  1 and\n 2, don't\u00a0 3."
    same, merged = [[tokenizer_with(r, words=w)(text)["input_ids"] for r in (rule, other)] for w in ((), ("ĠĠ",))]
    assert same[0] == same[1] and merged[0] != merged[1]
    assert find_pre_tokenizer(tokenizer_with(rule)) == "smollm"
    with pytest.raises(ValueError, match="`pre_tokenizer` must be given"):
        find_pre_tokenizer(tokenizer_with(rule, words=("ĠĠ",)))


def test_a_checkpoint_with_an_unknown_splitting_rule_takes_the_name_that_is_given(tmp_path):
    source = shutil.copytree(MHA, tmp_path / "source")
    parts = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    parts["pre_tokenizer"] = {"type": "Whitespace"}
    (source / "tokenizer.json").write_text(json.dumps(parts), encoding="utf-8")
    with pytest.raises(ValueError, match=r'not known here, {"type": "Whitespace"}\. Pass --pre-tokenizer NAME'):
        export_gguf(source, tmp_path / "mha.gguf")
    assert list(tmp_path.iterdir()) == [source]
    fields, _ = read(export_gguf(source, tmp_path / "mha.gguf", pre_tokenizer="starcoder"))
    assert fields["tokenizer.ggml.pre"] == "starcoder"


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_the_file(tmp_path):
    result = CliRunner().invoke(app, ["export", "gguf", str(MHA), str(tmp_path / "mha.gguf"), "--weights", "q8_0"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("GGUF file: ")
    assert read(tmp_path / "mha.gguf")[0]["general.file_type"] == 7


def test_bad_calls_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`weights` must be one of f32, f16, q8_0, got 'q4_0'"):
        export_gguf(MHA, tmp_path / "mha.gguf", weights="q4_0")
    (tmp_path / "there.gguf").write_text("something")
    with pytest.raises(FileExistsError, match="pass `--force` to replace a file"):
        export_gguf(MHA, tmp_path / "there.gguf")
    export_gguf(MHA, tmp_path / "there.gguf", force=True)


def test_quantised_weights_are_refused(tmp_path):
    source = shutil.copytree(MHA, tmp_path / "source")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "torchao"}
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds quantised weights, .* Use the checkpoint that it was made from"):
        export_gguf(source, tmp_path / "mha.gguf")


def test_a_tokenizer_that_is_no_byte_level_bpe_is_refused(tmp_path):
    source = shutil.copytree(MHA, tmp_path / "source")
    text = (source / "tokenizer.json").read_text(encoding="utf-8")
    assert '"normalizer": null' in text
    (source / "tokenizer.json").write_text(
        text.replace('"normalizer": null', '"normalizer": {"type": "Lowercase"}'), encoding="utf-8"
    )
    with pytest.raises(ValueError, match="takes a byte-level BPE tokenizer without a normalizer, got BPE with"):
        export_gguf(source, tmp_path / "mha.gguf")


def test_a_disk_that_gets_full_is_said_and_leaves_no_file(tmp_path) -> None:
    """The partial file is a link to a device that is always full."""
    (tmp_path / ".llada.gguf.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"The disk of `{tmp_path}` is full; free space, or name a folder on another"):
        export_gguf(MHA, tmp_path / "llada.gguf")
    assert list(tmp_path.iterdir()) == []
