"""transformers' own tests of a model, run on ours: `make test-upstream`.

They come from the source distribution of the installed version, see `download.py`; the classes below only say what to
test. `EXPECTED_FAILURES` names the tests that a diffusion model cannot pass.
"""

import tempfile
import unittest

import pytest
import torch
from transformers import set_seed
from transformers.models.auto import modeling_auto

from modeling_llada import LLaDAConfig, LLaDAModel, LLaDAModelLM

pytest.importorskip("transformers_tests", reason="run by `make test-upstream`, which downloads transformers' tests")
from transformers_tests import test_fsdp_mixin as fsdp
from transformers_tests import test_modeling_common as common
from transformers_tests import test_tensor_parallel_mixin as tensor_parallel
from transformers_tests.distributed_testing_utils import run_distributed
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_training_mixin import TrainingTesterMixin

# What a test's name begins with -> the error, and why a diffusion model cannot pass it. A test that passes is an error.
EXPECTED_FAILURES: dict[str, tuple[type[Exception], str]] = {
    "test_generation_tester_mixin_inheritance": (AssertionError, "the mixin tests autoregressive generation"),
    "test_training_overfit": (ValueError, "labels without masks: the model would only learn to copy its input"),
    "test_hsdp_grad_accumulation_vs_single_device": (
        AssertionError,
        "compares means over equally many labels; `loss` is a mean over the masks, of which each batch has others",
    ),
}

# What a model inside transformers has in its tables, and one outside cannot have. Tests look up there what a class is.
modeling_auto.MODEL_MAPPING_NAMES["llada"] = "LLaDAModel"
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["llada"] = "LLaDAModelLM"
modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES["llada"] = "LLaDAModelLM"
# The heads of masked models, which do not shift labels.
common.UNSHIFTED_LM_HEADS.add("LLaDAModelLM")
# The models that are also split over processes.
tensor_parallel.TP_DISTRIBUTED_TEST_MODEL_TYPES.add("llada")
fsdp.FSDP_DISTRIBUTED_TEST_MODEL_TYPES.add("llada")


class LLaDATester:
    """Tiny configurations and noisy inputs, under the names that transformers' tests look up."""

    base_model_class = LLaDAModel
    causal_lm_class = LLaDAModelLM
    batch_size, seq_length = 3, 12
    num_hidden_layers, num_attention_heads, hidden_size = 2, 4, 32
    is_training = True
    # One of the random ids of the training tests over processes, whose labels need a masked position.
    mask_token_id = 53

    def __init__(self, tied: bool):
        self.tied = tied

    def get_config(self) -> LLaDAConfig:
        return LLaDAConfig(
            d_model=self.hidden_size,
            n_layers=self.num_hidden_layers,
            n_heads=self.num_attention_heads,
            n_kv_heads=2,
            mlp_hidden_size=64,
            vocab_size=99,
            weight_tying=self.tied,
            mask_token_id=self.mask_token_id,
            eos_token_id=0,
            pad_token_id=0,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[LLaDAConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        ids = common.ids_tensor([self.batch_size, self.seq_length], config.vocab_size)
        ids[:, 1::3] = self.mask_token_id
        return config, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def names_of(cases: type, start: str) -> list[str]:
    """The tests of a class whose names begin so; the originals of parametrized ones are None."""
    return [name for name in dir(cases) if name.startswith(start) and callable(getattr(cases, name))]


def mark_expected_failures(cases: type) -> type:
    """Mark the tests of a class that `EXPECTED_FAILURES` names."""
    for start, (error, reason) in EXPECTED_FAILURES.items():
        mark = pytest.mark.xfail(strict=True, raises=error, reason=reason)
        for name in names_of(cases, start):
            setattr(cases, name, mark(getattr(cases, name)))
    return cases


def assert_two_processes_generate_the_same(rank: int, folder: str) -> None:
    """Compare the tokens of a model that is split over the processes with those of the whole model."""
    split, whole, _ = tensor_parallel._load_tp_and_reference_models(folder, LLaDAModelLM)
    set_seed(0)
    prompt = torch.randint(0, 50, (2, 10))
    for cache in ("none", "prefix", "dual"):
        options = {"max_new_tokens": 24, "block_length": 8, "steps": 12, "cache": cache, "use_cache": True}
        expected = whole.generate(prompt, do_sample=False, num_beams=1, **options)
        assert torch.equal(split.generate(prompt, do_sample=False, num_beams=1, **options), expected)


class ModelTests(common.ModelTesterMixin):
    """What holds for every model."""

    all_model_classes = (LLaDAModel, LLaDAModelLM)
    # transformers skips this for files without a copyright line, which it takes for old ones.
    test_can_init_all_missing_weights_before_2023 = True
    tied = False

    def setUp(self) -> None:
        self.model_tester = LLaDATester(self.tied)

    def test_config(self) -> None:
        fields = {"vocab_size": 99, "d_model": 32, "n_heads": 4, "mask_token_id": 53}
        ConfigTester(self, config_class=LLaDAConfig, eos_token_id=0, pad_token_id=0, **fields).run_common_tests()


@mark_expected_failures
class TestUntied(
    ModelTests,
    TrainingTesterMixin,
    tensor_parallel.TensorParallelTesterMixin,
    fsdp.FSDPTesterMixin,
    unittest.TestCase,
):
    """Also training, and models over several processes; those tests tie the weights themselves."""

    def test_tp_generation(self) -> None:
        """In place of transformers', which compares the scores of one next token per step."""
        with tempfile.TemporaryDirectory() as folder:
            set_seed(42)
            LLaDAModelLM(self._get_tp_config()).save_pretrained(folder)
            run_distributed(world_size=2)(assert_two_processes_generate_the_same)(folder)


@mark_expected_failures
class TestTied(ModelTests, unittest.TestCase):
    """The same with one weight for embedding and head."""

    tied = True


@pytest.mark.parametrize("start", EXPECTED_FAILURES)
def test_every_expected_failure_is_a_test_of_transformers(start) -> None:
    assert names_of(TestUntied, start)
