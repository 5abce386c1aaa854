"""Laws of the configuration."""

import json
import math
import re

import pytest
import torch

import modeling_llada.configuration_llada as configuration
from modeling_llada import LLaDAConfig, LLaDAModelLM
from modeling_llada.configuration_llada import AUTO_MAP, FIELD_TYPES, SUPPORTED_VALUES

# config.json of LLaDA-8B-Base, LLaDA-8B-Instruct and LLaDA-1.5.
OFFICIAL_8B = {
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "auto_map": {
        "AutoConfig": "configuration_llada.LLaDAConfig",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        "AutoModel": "modeling_llada.LLaDAModelLM",
    },
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_dropout": 0.0,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "transformers_version": "4.46.3",
    "use_cache": False,
    "vocab_size": 126464,
    "weight_tying": False,
}
SMALL = {"d_model": 32, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 64, "vocab_size": 100, "mask_token_id": 99}
SMALL |= {"eos_token_id": 0, "pad_token_id": 0}


def test_the_official_file_loads_unchanged_and_survives_a_round_trip(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**OFFICIAL_8B, "a_harmless_field": [1, "two"]}))
    config = LLaDAConfig.from_pretrained(tmp_path)
    config.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    again = LLaDAConfig.from_pretrained(tmp_path / "again")
    for name, value in {**OFFICIAL_8B, "a_harmless_field": [1, "two"]}.items():
        if name not in ("auto_map", "transformers_version", "model_type"):
            assert getattr(config, name) == value, name
            assert getattr(again, name) == value, name
    assert written["auto_map"] == AUTO_MAP
    assert written["model_type"] == "llada"


def test_the_defaults_are_those_of_the_8b_model() -> None:
    config = LLaDAConfig()
    for name, value in OFFICIAL_8B.items():
        if hasattr(config, name) and name not in ("auto_map", "transformers_version", "architectures"):
            assert getattr(config, name) == value, name


def test_hugging_face_names_read_write_and_construct_the_same_fields() -> None:
    config = LLaDAConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2, **{
        name: value for name, value in SMALL.items() if name not in ("d_model", "n_layers", "n_heads")
    })  # fmt: skip
    assert (config.d_model, config.n_layers, config.n_heads, config.n_kv_heads) == (64, 3, 8, 2)
    assert config.intermediate_size == config.mlp_hidden_size == 64
    assert config.max_position_embeddings == config.max_sequence_length == 4096
    assert config.tie_word_embeddings is False
    config.hidden_size = 128
    assert config.d_model == 128
    assert LLaDAConfig(weight_tying=True, **SMALL).tie_word_embeddings is True
    assert LLaDAConfig(tie_word_embeddings=True, **SMALL).weight_tying is True


def test_the_dictionary_has_the_names_that_other_libraries_read_and_the_file_only_the_official_ones(tmp_path) -> None:
    config = LLaDAConfig(**SMALL, n_kv_heads=2, weight_tying=True)
    names = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    names |= {"tie_word_embeddings": True}
    fields = config.to_dict()
    assert {name: fields[name] for name in names} == names
    config.save_pretrained(tmp_path)
    assert not set(names) & set(json.loads((tmp_path / "config.json").read_text()))
    for again in (LLaDAConfig(**fields), LLaDAConfig.from_dict(fields), LLaDAConfig.from_pretrained(tmp_path)):
        own = [name for name in fields if name not in ("_name_or_path", "attn_implementation")]
        assert [again.to_dict()[name] for name in own] == [fields[name] for name in own]
    config.n_layers = 3
    assert config.to_dict()["num_hidden_layers"] == 3


@pytest.mark.parametrize(
    "changed", [{"n_layers": 4}, {"num_hidden_layers": 4}, {"tie_word_embeddings": False}], ids=str
)
def test_two_names_of_one_field_with_two_values_are_refused(changed) -> None:
    fields = LLaDAConfig(**SMALL, weight_tying=True).to_dict()
    with pytest.raises(ValueError, match=r"`\w+` and `\w+` are two names of one field, got \w+ and \w+; pass one"):
        LLaDAConfig(**{**fields, **changed})


UNSUPPORTED = {
    "activation_type": "gelu",
    "alibi": True,
    "attention_dropout": 0.1,
    "attention_layer_norm": True,
    "bias_for_layer_norm": True,
    "block_group_size": 2,
    "block_type": "sequential",
    "clip_qkv": 8.0,
    "embedding_dropout": 0.1,
    "include_bias": True,
    "include_qkv_bias": True,
    "init_fn": "kaiming_normal",
    "input_emb_norm": True,
    "layer_norm_type": "default",
    "layer_norm_with_affine": False,
    "residual_dropout": 0.1,
    "rope": False,
    "rope_full_precision": False,
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "scale_logits": True,
}


def test_every_switch_that_is_checked_is_tested() -> None:
    assert set(UNSUPPORTED) == set(SUPPORTED_VALUES)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_switch_that_the_model_does_not_compute_is_refused_by_name(name) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got .*does not compute that variant"):
        LLaDAConfig(**SMALL, **{name: UNSUPPORTED[name]})


@pytest.mark.parametrize("value", ["linear", 1, [1.0], {}], ids=str)
def test_a_scaling_of_positions_is_refused_by_name_whatever_it_is(value) -> None:
    with pytest.raises(ValueError, match=r"`rope_scaling` must be None, got "):
        LLaDAConfig(**SMALL, rope_scaling=value)


@pytest.mark.parametrize("fields", [{"architectures": ["LLaDAMoEModelLM"]}, {"num_experts": 64}], ids=str)
def test_llada_moe_is_refused_by_name(fields) -> None:
    with pytest.raises(ValueError, match=r"LLaDA-MoE checkpoint .*load it with the class `LLaDAMoEModelLM`"):
        LLaDAConfig(**SMALL, **fields)


BAD_SIZES = [
    ({"n_layers": 0}, "`n_layers` must be a positive integer, got 0"),
    ({"d_model": 30}, "`d_model` must be an even multiple of `n_heads`"),
    ({"d_model": 36}, "`d_model` must be an even multiple of `n_heads`"),
    ({"n_kv_heads": 3}, "`n_kv_heads` must divide `n_heads`, got n_kv_heads=3"),
    ({"embedding_size": 99}, r"`embedding_size` must be at least `vocab_size` \(100\), got 99"),
    ({"multi_query_attention": True, "n_kv_heads": 2}, "`multi_query_attention=True` needs `n_kv_heads=1`"),
    ({"mask_token_id": 100}, r"`mask_token_id` must lie in the vocabulary, 0\.\.99, got 100"),
    ({"eos_token_id": [0, 300]}, "`eos_token_id` must lie in the vocabulary"),
    ({"pad_token_id": -1}, "`pad_token_id` must lie in the vocabulary"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_SIZES, ids=[message for _, message in BAD_SIZES])
def test_sizes_and_ids_that_do_not_fit_are_named(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        LLaDAConfig(**{**SMALL, **fields})


NUMBERS_ONLY = ("d_model", "n_layers", "n_heads", "vocab_size", "max_sequence_length", "mlp_ratio")
OPTIONAL_NUMBERS = ("embedding_size", "mlp_hidden_size", "n_kv_heads")
BAD_VALUES = [
    *((name, value) for name in NUMBERS_ONLY for value in (None, "x", [1], True, 1.5, -1)),
    *((name, value) for name in OPTIONAL_NUMBERS for value in ("x", [], True, 200.5, 0)),
    *((name, value) for name in ("mask_token_id", "pad_token_id") for value in ("3", "", 1.5, False, [], [None])),
    *(("eos_token_id", value) for value in ("3", "", 1.5, False, [], [None], [0, "1"])),
    *((name, value) for name in ("rope_theta", "rms_norm_eps") for value in (None, "x", 0, -5, math.nan, math.inf)),
    *(("init_cutoff_factor", value) for value in (-1, "x", math.nan)),
    *(("init_std", value) for value in (-0.1, "x", None)),
    *(("weight_tying", value) for value in ("no", None, 1)),
    *((name, value) for name in ("multi_query_attention", "use_cache") for value in ("no", 1)),
    *(("return_dict", value) for value in (None, [])),
    *(("architectures", value) for value in (5, "LLaDAModelLM", [1])),
]  # fmt: skip


def test_every_field_whose_type_is_checked_is_tested() -> None:
    assert {name for name, _ in BAD_VALUES} == set(FIELD_TYPES)


@pytest.mark.parametrize(("name", "value"), BAD_VALUES, ids=str)
def test_a_field_of_a_wrong_type_or_range_is_refused_by_name(name, value) -> None:
    with pytest.raises(ValueError, match=f"^`{name}` must be .*, got {re.escape(repr(value))}"):
        LLaDAConfig(**{**SMALL, name: value})


def test_hugging_face_names_of_a_wrong_type_are_refused_by_ours() -> None:
    with pytest.raises(ValueError, match="`d_model` must be a positive integer, got 'x'"):
        LLaDAConfig(**{**SMALL, "hidden_size": "x"} | {"d_model": 4096})


@pytest.mark.parametrize("text", ["null", "1", '"x"', "[]"])
def test_a_file_that_holds_no_object_is_refused(text, tmp_path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json` must hold a JSON object, got .*; download or save it again"):
        LLaDAConfig.from_pretrained(tmp_path)


def test_a_vocabulary_smaller_than_the_default_ids_warns_and_unsets_them(caplog, tmp_path) -> None:
    configuration.logger.propagate = True
    configuration.logger.warning_once.cache_clear()
    config = LLaDAConfig(d_model=32, n_layers=1, n_heads=2, mlp_hidden_size=64, vocab_size=99)
    assert (config.mask_token_id, config.eos_token_id, config.pad_token_id) == (None, None, None)
    assert "The default `mask_token_id` (126336) lies outside the vocabulary of 99 tokens and is unset" in caplog.text
    model = LLaDAModelLM(config).eval()
    assert model(torch.zeros(1, 3, dtype=torch.long)).logits.shape == (1, 3, 99)
    with pytest.raises(ValueError, match="`mask_token_id`"):
        model.generate(torch.zeros(1, 3, dtype=torch.long), max_new_tokens=2)
    config.save_pretrained(tmp_path)
    assert LLaDAConfig.from_pretrained(tmp_path).mask_token_id is None


def test_sizes_left_out_follow_from_the_others() -> None:
    config = LLaDAConfig(**{**SMALL, "mlp_hidden_size": None})
    assert (config.n_kv_heads, config.mlp_hidden_size, config.embedding_size) == (4, 128, 100)
    assert LLaDAConfig(multi_query_attention=True, **SMALL).n_kv_heads == 1


def test_an_embedding_as_large_as_the_vocabulary_follows_it() -> None:
    config = LLaDAConfig(vocab_size=200, mask_token_id=99, eos_token_id=0, pad_token_id=0)
    config.vocab_size = 256
    assert config.embedding_size == 256
    padded = LLaDAConfig(vocab_size=200, embedding_size=256, mask_token_id=99, eos_token_id=0, pad_token_id=0)
    padded.vocab_size = 210
    assert padded.embedding_size == 256
    assert LLaDAConfig.from_dict(padded.to_diff_dict()).embedding_size == 256
