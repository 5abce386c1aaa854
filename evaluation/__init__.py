"""Evaluation of LLaDA models: likelihood, lm-evaluation-harness, records of scores, experiments of the paper.

Importing this package makes the model `llada` known to lm-evaluation-harness, if that is installed.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .confidence_order import matches_greedy_decoding, score_in_confidence_order
    from .digest import model_digest
    from .harness import LLaDAHarnessModel
    from .likelihood import LikelihoodEstimate, LikelihoodOptions, estimate_log_likelihoods
    from .records import EvaluationRecord, checkpoint_hash, environment, read_record, write_record

__all__ = [
    "EvaluationRecord",
    "LLaDAHarnessModel",
    "LikelihoodEstimate",
    "LikelihoodOptions",
    "checkpoint_hash",
    "environment",
    "estimate_log_likelihoods",
    "matches_greedy_decoding",
    "model_digest",
    "read_record",
    "score_in_confidence_order",
    "write_record",
]

# The file that holds each name; it is imported when the name is first used.
_HOMES = {
    "EvaluationRecord": "records",
    "LLaDAHarnessModel": "harness",
    "LikelihoodEstimate": "likelihood",
    "LikelihoodOptions": "likelihood",
    "checkpoint_hash": "records",
    "environment": "records",
    "estimate_log_likelihoods": "likelihood",
    "matches_greedy_decoding": "confidence_order",
    "model_digest": "digest",
    "read_record": "records",
    "score_in_confidence_order": "confidence_order",
    "write_record": "records",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOMES[name] == "harness" and find_spec("lm_eval") is None:
        raise ImportError(f"`{name}` needs the package `lm_eval`; install it with: pip install 'llada-hf[eval]'")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__


def _register_with_harness() -> None:
    """Let `lm_eval.api.registry.get_model("llada")` find our class, which is imported no earlier than that."""
    if find_spec("lm_eval") is None:
        return
    import lm_eval.models  # noqa: F401  The harness adds its own models only as long as the registry is empty.
    from lm_eval.api.registry import model_registry

    model_registry.register("llada", target=f"{__name__}.harness:LLaDAHarnessModel")


_register_with_harness()
