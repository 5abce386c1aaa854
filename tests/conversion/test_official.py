"""Laws of converting released checkpoints: no byte of a tensor changes, all that is wrong is said, nothing half."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from llada_cli.main import app
from llada_conversion import convert_official, verify_folder
from llada_conversion.official import expected_shapes
from llada_core.loading import load_model
from modeling_llada import LLaDAConfig, LLaDAModelLM
from modeling_llada.configuration_llada import AUTO_MAP
from tests.helpers import CODE_FILES, REFERENCE

NAMES = ("mha", "tied", "mha_sharded")
Q_PROJ = "model.transformer.blocks.0.q_proj.weight"
SHARD = "model-00003-of-00005.safetensors"
INDEX = "model.safetensors.index.json"


def reference(name: str) -> Path:
    return REFERENCE / "checkpoints" / name


def copy_of(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(reference(name), folder / "source"))


def read_tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def raw_bytes(folder: Path) -> dict[str, bytes]:
    return {name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in read_tensors(folder).items()}


def change_json(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


# --- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_weight_files_and_their_index_are_copied_byte_for_byte(name, tmp_path) -> None:
    folder = convert_official(reference(name), tmp_path / "ours")
    for path in reference(name).glob("*.safetensors"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    index = "model.safetensors.index.json"
    assert (folder / index).exists() == (name == "mha_sharded")
    if name == "mha_sharded":
        assert json.loads((folder / index).read_text()) == json.loads((reference(name) / index).read_text())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", ["official", "llama"])
def test_official_to_ours_to_official_keeps_every_tensor_byte_for_byte(name, layout, tmp_path) -> None:
    ours = convert_official(reference(name), tmp_path / "ours", layout=layout, verify=True)
    back = convert_official(ours, tmp_path / "back", verify=True)
    assert raw_bytes(back) == raw_bytes(reference(name))
    if layout == "llama":
        assert not any("transformer" in tensor for tensor in read_tensors(ours))


def test_bfloat16_stays_bfloat16_under_other_names(tmp_path) -> None:
    source = copy_of("mha", tmp_path)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    ours = convert_official(source, tmp_path / "ours", layout="llama")
    renamed = read_tensors(ours)["model.layers.0.self_attn.q_proj.weight"]
    assert renamed.dtype == torch.bfloat16 and torch.equal(renamed, weights[Q_PROJ])
    assert verify_folder(source, ours) == 0.0


@torch.no_grad()
@pytest.mark.parametrize("name", ["mha", "tied"])
def test_a_converted_folder_computes_the_recorded_logits(name, tmp_path) -> None:
    case = torch.load(REFERENCE / "recorded" / f"{name}.pt", weights_only=True)["logits"]["single"]
    folder = convert_official(reference(name), tmp_path / "ours")
    model = LLaDAModelLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.testing.assert_close(model(case["input_ids"]).logits, case["logits"], atol=1e-4, rtol=1e-4)


def test_a_folder_holds_code_config_options_and_a_repaired_tokenizer(tmp_path) -> None:
    folder = convert_official(reference("mha"), tmp_path / "ours")
    assert {path.name for path in folder.glob("*.py")} == CODE_FILES
    config = json.loads((folder / "config.json").read_text())
    assert (config["auto_map"], config["architectures"]) == (AUTO_MAP, ["LLaDAModelLM"])
    assert (config["rope_theta"], config["alibi_bias_max"], config["precision"]) == (500000.0, 8.0, "amp_bf16")
    options = json.loads((folder / "generation_config.json").read_text())
    assert [options[name] for name in ("eos_token_id", "bos_token_id", "eot_token_id")] == [481, 480, 491]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id) == (488, 481)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"


def test_the_chat_tokens_that_llada_base_lacks_are_added_behind_its_last_token(tmp_path) -> None:
    source = copy_of("mha", tmp_path)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    chat = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    kept = [token for token in tokenizer["added_tokens"] if token["id"] < 489]
    assert not any(token["content"] in chat for token in kept)
    (source / "tokenizer.json").write_text(json.dumps({**tokenizer, "added_tokens": kept}))
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {i: t for i, t in config["added_tokens_decoder"].items() if int(i) < 489}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    folder = convert_official(source, tmp_path / "ours")
    repaired = PreTrainedTokenizerFast.from_pretrained(folder)
    assert repaired.convert_tokens_to_ids(list(chat)) == [489, 490, 491]
    assert json.loads((folder / "generation_config.json").read_text())["eot_token_id"] == 491


def test_llamas_layout_has_no_code_since_the_code_does_not_read_it(tmp_path) -> None:
    folder = convert_official(reference("mha"), tmp_path / "ours", layout="llama")
    assert list(folder.glob("*.py")) == []
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    with pytest.raises(ValueError, match=r"lack 21 tensor\(s\)"):
        load_model(folder)


def test_a_single_file_goes_before_an_index_as_when_loading(tmp_path) -> None:
    source = copy_of("mha", tmp_path)
    shutil.copy(reference("mha_sharded") / INDEX, source)
    folder = convert_official(source, tmp_path / "ours")
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]


def test_licence_texts_travel_with_the_weights(tmp_path) -> None:
    source = copy_of("mha", tmp_path)
    (source / "LICENSE.txt").write_text("MIT")
    assert (convert_official(source, tmp_path / "ours") / "LICENSE.txt").read_text() == "MIT"


def test_linked_weights_are_one_file_under_two_names(tmp_path) -> None:
    source = copy_of("mha_sharded", tmp_path)
    folder = convert_official(source, tmp_path / "ours", link=True)
    assert (folder / SHARD).samefile(source / SHARD)
    assert not (folder / SHARD).is_symlink()


def test_linking_cannot_rename(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"`link` cannot rename, but `.*mha` is not in layout='llama' already"):
        convert_official(reference("mha"), tmp_path / "ours", layout="llama", link=True)


def test_the_tensors_of_llada_8b_are_the_published_ones() -> None:
    shapes = expected_shapes(LLaDAConfig(n_layers=32))
    assert len(shapes) == 291
    assert shapes["model.transformer.ff_out.weight"] == (126464, 4096)
    assert shapes["model.transformer.blocks.31.ff_out.weight"] == (4096, 12288)
    assert sum(rows * (columns[0] if columns else 1) for rows, *columns in shapes.values()) == 8_015_581_184


# --- verification ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["official", "llama"])
def test_verification_notices_a_single_changed_bit_of_any_tensor(layout, tmp_path) -> None:
    folder = convert_official(reference("mha"), tmp_path / "ours", layout=layout)
    assert verify_folder(reference("mha"), folder) == 0.0
    path = folder / "model.safetensors"
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    for position in (start, path.stat().st_size - 1):
        flip_byte(path, position)
        with pytest.raises(ValueError, match=r"is not what was converted: `model\..*` has other bytes\. Convert again"):
            verify_folder(reference("mha"), folder)
        flip_byte(path, position)
    assert verify_folder(reference("mha"), folder) == 0.0


def test_verification_notices_a_config_that_computes_something_else(tmp_path) -> None:
    folder = convert_official(reference("tied"), tmp_path / "ours")
    change_json(folder / "config.json", rope_theta=10000.0)
    with pytest.raises(ValueError, match=r"have the same weights, but their logits differ by .*: their config\.json"):
        verify_folder(reference("tied"), folder)


def test_verification_notices_changed_code_missing_tensors_and_other_types(tmp_path) -> None:
    folder = convert_official(reference("mha"), tmp_path / "ours")
    with (folder / "unmasking_llada.py").open("a") as file:
        file.write("# changed\n")
    weights = load_file(folder / "model.safetensors")
    weights["model.transformer.ln_f.weight"] = weights["model.transformer.ln_f.weight"].double()
    del weights[Q_PROJ]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError) as caught:
        verify_folder(reference("mha"), folder)
    for part in (f"`{Q_PROJ}` is in only one of the two", "ln_f.weight` has another type or shape"):
        assert part in str(caught.value)
    assert "`unmasking_llada.py` is not this package's" in str(caught.value)


def test_verification_notices_a_download_that_differs_from_its_name_in_the_cache(tmp_path) -> None:
    source = copy_of("mha", tmp_path)
    data = (source / "model.safetensors").read_bytes()
    blob = tmp_path / hashlib.sha256(data).hexdigest()
    blob.write_bytes(data)
    (source / "model.safetensors").unlink()
    (source / "model.safetensors").symlink_to(blob)
    convert_official(source, tmp_path / "good", verify=True)
    flip_byte(blob, len(data) - 1)
    with pytest.raises(ValueError, match=r"downloaded `model\.safetensors` has another SHA-256 than on the Hub"):
        convert_official(source, tmp_path / "bad", verify=True)
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("name", ["LICENSE", "NOTICE.txt"])
@pytest.mark.parametrize("place", ["../outside", "/etc/hostname", "private/notes", "nowhere"])
def test_a_licence_that_is_a_link_out_of_the_folder_is_not_followed(name, place, tmp_path) -> None:
    source = copy_of("mha", tmp_path)
    (tmp_path / "outside").write_text("private")
    (source / "private").mkdir()
    (source / "private" / "notes").write_text("private")
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(place)
    with pytest.raises(
        ValueError, match=rf"Licence texts must be files of `.*`, but .* or to nothing: {name}; put the"
    ):
        convert_official(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_licences_of_the_hubs_cache_and_links_inside_the_folder_are_copied(tmp_path) -> None:
    repo = tmp_path / "models--user--name"
    source = Path(shutil.copytree(reference("mha"), repo / "snapshots" / "abc"))
    (repo / "blobs").mkdir()
    for path in [*source.iterdir()]:
        path.rename(repo / "blobs" / path.name)
        path.symlink_to(f"../../blobs/{path.name}")
    (repo / "blobs" / "0123").write_text("Apache")
    (source / "LICENSE").unlink(missing_ok=True)
    (source / "LICENSE").symlink_to("../../blobs/0123")
    (source / "NOTICES").mkdir()
    ours = convert_official(source, tmp_path / "ours")
    assert (ours / "LICENSE").read_text() == "Apache" and not (ours / "LICENSE").is_symlink()
    (ours / "LICENSE.md").symlink_to("LICENSE")
    assert (convert_official(ours, tmp_path / "again") / "LICENSE.md").read_text() == "Apache"


# --- bad input -------------------------------------------------------------------------------------------------------


def test_missing_extra_and_wrongly_shaped_tensors_are_all_listed_at_once(tmp_path) -> None:
    source = copy_of("mha", tmp_path)
    weights = load_file(source / "model.safetensors")
    del weights[Q_PROJ]
    weights["model.transformer.blocks.0.q_norm.weight"] = torch.ones(64)
    weights["lm_head.weight"] = weights["model.transformer.ff_out.weight"].clone()
    weights["model.transformer.ln_f.weight"] = torch.ones(65)
    weights["model.transformer.wte.weight"] = weights["model.transformer.wte.weight"].to(torch.int8)
    save_file(weights, source / "model.safetensors")
    with pytest.raises(ValueError) as caught:
        convert_official(source, tmp_path / "ours")
    for part in (
        f"`{Q_PROJ}` is missing.",
        "Unexpected tensor `model.transformer.blocks.0.q_norm.weight`.",
        "Unexpected tensor `lm_head.weight`.",
        "`model.transformer.ln_f.weight` has shape [65], not [64].",
        "`model.transformer.wte.weight` is of type I8, not F64, F32, F16, BF16.",
        "Use the config.json that belongs to these weights",
    ):
        assert part in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def cut_off(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def config(**fields: object) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "config.json", **fields)


def double_shard(folder: Path) -> None:
    shutil.copy(folder / SHARD, folder / "model-00004-of-00005.safetensors")


# What is wrong with which checkpoint, and how the error reads.
DAMAGES = {
    "cut shard": ("mha_sharded", cut_off(SHARD), rf"`{SHARD}` is cut off or not a safetensors file \(.*\)\. Download"),
    "header cut": ("mha", write("model.safetensors", "12345"), r"`model\.safetensors` is cut off or not a safetensors"),
    "no header": ("mha", write("model.safetensors", "\x05" + "\0" * 7 + "[1,2]"), "cut off or not a safetensors file"),
    "no json": ("mha", write("model.safetensors", "\x05" + "\0" * 7 + "{1,2]"), "cut off or not a safetensors file"),
    "no shard": ("mha_sharded", remove(SHARD), f"lacks {SHARD}; download or copy the whole checkpoint"),
    "twice": ("mha_sharded", double_shard, r"`.*` is in two files\."),
    "bad index": ("mha_sharded", write(INDEX, "{}"), rf"{INDEX} of `.*` is corrupt: it must have a `weight_map`"),
    "index out": (
        "mha_sharded",
        write(INDEX, '{"metadata": {}, "weight_map": {"a": "../x"}}'),
        r"must name a file beside it for every tensor, got '\.\./x' for `a`",
    ),
    "index wrong": (
        "mha_sharded",
        write(INDEX, json.dumps({"metadata": {}, "weight_map": {Q_PROJ: "model-00002-of-00005.safetensors"}})),
        rf"is not where `{INDEX}` says",
    ),
    "no weights": ("mha", remove("model.safetensors"), r"has no `model\.safetensors` and no .*`save_pretrained`"),
    "no tokenizer": ("mha", remove("tokenizer.json"), r"has no `tokenizer\.json`; download or copy the whole"),
    "bad tokenizer": ("mha", write("tokenizer.json", "{"), r"tokenizer of `.*` is corrupt \(.*\); download"),
    "other mask": ("mha", config(mask_token_id=487), "`mask_token_id` must be the same .*, got 487 and 488"),
    "no config": ("mha", remove("config.json"), r"has no `config\.json`"),
    "Llama": (
        "mha",
        config(model_type="llama"),
        r"`model_type` must be 'llada' or 'illada', got 'llama'; .*convert autoregressive",
    ),
    "MoE": ("mha", config(architectures=["LLaDAMoEModelLM"]), r"do not fit its config.json: .* And \d+ more\."),
    "quantised": (
        "mha",
        config(quantization_config={"quant_method": "bitsandbytes"}),
        r"holds quantised weights, .* a `quantization_config` of 'bitsandbytes'\. Use the checkpoint that it was",
    ),
    "biases": ("mha", config(include_bias=True), "`include_bias` must be False"),
    "other sizes": ("mha", config(n_layers=3), r"`model\.transformer\.blocks\.2\.q_proj\.weight` is missing\."),
}


@pytest.mark.parametrize("name, damage, message", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_checkpoint_that_cannot_be_converted_is_refused_in_words(name, damage, message, tmp_path) -> None:
    source = copy_of(name, tmp_path)
    damage(source)
    with pytest.raises((ValueError, OSError), match=message):
        convert_official(source, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def with_header(path: Path, change: Callable[[dict], object], behind: bytes = b"") -> None:
    """Rewrite the header of a safetensors file: `change` edits it, or returns another, which may be text."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    changed = change(header)
    text = (changed if isinstance(changed, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:] + behind)


def offsets(change: Callable[[int, int], list]) -> Callable[[dict], object]:
    return lambda header: header[Q_PROJ].update(data_offsets=change(*header[Q_PROJ]["data_offsets"]))


# What is wrong with a header whose file is as long as it should be, or longer.
HEADERS: dict[str, tuple[Callable[[dict], object], bytes]] = {
    "bytes behind": (lambda header: None, b"\0" * 8),
    "negative": (offsets(lambda start, end: [-8, end]), b""),
    "reversed": (offsets(lambda start, end: [end, start]), b""),
    "floats": (offsets(lambda start, end: [start + 0.0, end + 0.0]), b""),
    "words": (offsets(lambda start, end: [str(start), str(end)]), b""),
    "one number": (offsets(lambda start, end: [start]), b""),
    "too short": (offsets(lambda start, end: [start, end - 4]), b""),
    "a gap": (offsets(lambda start, end: [start + 4, end + 4]), b"\0" * 4),
    "another shape": (lambda header: header[Q_PROJ].update(shape=[64, 32]), b""),
    "a negative shape": (lambda header: header[Q_PROJ].update(shape=[-64, -64]), b""),
    "another type": (lambda header: header[Q_PROJ].update(dtype="F16"), b""),
    "no type": (lambda header: header[Q_PROJ].update(dtype="G7"), b""),
    "metadata list": (lambda header: header.update(__metadata__=["pt"]), b""),
    "metadata nested": (lambda header: header.update(__metadata__={"format": {"a": "pt"}}), b""),
    "metadata number": (lambda header: header.update(__metadata__={"format": 5}), b""),
    "too deep": (lambda header: '{"a":' + "[" * 100_000 + "]" * 100_000 + "}", b""),
    "half a surrogate": (lambda header: json.dumps({**header, "x": header[Q_PROJ]}).replace('"x"', '"\\ud800"'), b""),
    "a foreign entry": (lambda header: header.update(x=5), b""),
}


@pytest.mark.parametrize("change, behind", HEADERS.values(), ids=HEADERS.keys())
@pytest.mark.parametrize("flags", [[], ["--verify"], ["--layout", "llama"]], ids=["plain", "verify", "llama"])
def test_weights_that_would_not_load_are_refused_on_one_line(change, behind, flags, tmp_path) -> None:
    source = copy_of("mha", tmp_path)
    with_header(source / "model.safetensors", change, behind)
    done = CliRunner().invoke(app, ["convert", "official", str(source), str(tmp_path / "ours"), *flags])
    assert done.exit_code == 2
    assert done.output.startswith(
        f"Error: The weights of `{source}` are damaged. `model.safetensors` is cut off or not"
    )
    assert done.output.count("\n") == 1 and done.output.endswith("Download or save them again.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


INDEXES = (
    "null", "[]", "5", "{", "[" * 100_000, '{"weight_map": null}', '{"weight_map": []}', '{"weight_map": {}}',
    '{"weight_map": {"a": "model.safetensors"}}', '{"metadata": 5, "weight_map": {"a": "model.safetensors"}}',
    '{"weight_map": {"a": 5}}', '{"weight_map": {"a": null}}', '{"weight_map": {"a": ["x"], "b": "y"}}',
)  # fmt: skip


@pytest.mark.parametrize("text", INDEXES, ids=[text[:40] for text in INDEXES])
def test_a_damaged_index_is_refused_on_one_line(text, tmp_path) -> None:
    source = copy_of("mha_sharded", tmp_path)
    (source / INDEX).write_text(text)
    done = CliRunner().invoke(app, ["convert", "official", str(source), str(tmp_path / "ours")])
    assert done.exit_code == 2
    assert done.output.startswith(f"Error: The {INDEX} of `{source}` is corrupt: ")
    assert done.output.endswith("download or save it again.\n") and done.output.count("\n") == 1


def test_weights_that_are_not_finite_are_blamed_and_not_the_config(tmp_path) -> None:
    source = copy_of("mha", tmp_path)
    weights = load_file(source / "model.safetensors")
    weights[Q_PROJ][3, 4] = float("nan")
    weights["model.transformer.ln_f.weight"][5] = float("inf")
    save_file(weights, source / "model.safetensors")
    words = rf"are not finite numbers: `{Q_PROJ}`, `model\.transformer\.ln_f\.weight`\. Download them again"
    with pytest.raises(ValueError, match=words) as caught:
        convert_official(source, tmp_path / "ours", verify=True)
    assert "config.json" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_two_cut_shards_are_both_named(tmp_path) -> None:
    source = copy_of("mha_sharded", tmp_path)
    for number in (2, 5):
        cut_off(f"model-0000{number}-of-00005.safetensors")(source)
    with pytest.raises(ValueError, match=r"model-00002-of-00005.* is cut off.*model-00005-of-00005.* is cut off"):
        convert_official(source, tmp_path / "ours")


def test_places_that_cannot_be_are_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no folder `\./nowhere`; name a checkpoint folder or a Hub"):
        convert_official("./nowhere", tmp_path / "ours")
    with pytest.raises(NotADirectoryError, match=r"config\.json` is a file; name the folder that holds it"):
        convert_official(reference("mha") / "config.json", tmp_path / "ours")
    with pytest.raises(FileExistsError, match="pass `--force`"):
        convert_official(reference("mha"), reference("tied"))
    with pytest.raises(ValueError, match="must not overlap"):
        convert_official(reference("mha"), reference("mha") / "ours")
    with pytest.raises(ValueError, match="`layout` must be one of official, llama, got 'mistral'"):
        convert_official(reference("mha"), tmp_path / "ours", layout="mistral")


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_converts_verifies_and_says_where(tmp_path) -> None:
    target = str(tmp_path / "ours")
    done = CliRunner().invoke(app, ["convert", "official", str(reference("mha")), target, "--verify"])
    assert (done.exit_code, done.output) == (0, f"LLaDA checkpoint: {target} (verified)\n")
    again = CliRunner().invoke(app, ["convert", "official", str(reference("mha")), target])
    assert again.exit_code == 2 and "pass `--force` to replace it" in again.output
    forced = CliRunner().invoke(app, ["convert", "official", str(reference("tied")), target, "--force"])
    assert forced.exit_code == 0
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["weight_tying"] is True
