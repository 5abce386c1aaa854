"""Evaluation of LLaDA models: likelihood, lm-evaluation-harness, suites of benchmarks, comparison of scores.

Importing this package makes the model `llada` known to lm-evaluation-harness, if that is installed.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

# The module of each name; it is imported when the name is first used.
_MODULES = {
    "EvaluationRecord": "llada_core.records",
    "LLaDAHarnessModel": ".harness",
    "LikelihoodEstimate": ".likelihood",
    "LikelihoodOptions": ".likelihood",
    "checkpoint_hash": "llada_core.digests",
    "environment": "llada_core.records",
    "estimate_log_likelihoods": ".likelihood",
    "matches_greedy_decoding": ".confidence_order",
    "model_digest": "llada_core.digests",
    "read_record": "llada_core.records",
    "score_in_confidence_order": ".confidence_order",
    "write_record": "llada_core.records",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _MODULES[name] == ".harness" and find_spec("lm_eval") is None:
        raise ImportError(f"`{name}` needs the package `lm_eval`; install it with: pip install 'llada-hf[eval]'")
    return getattr(import_module(_MODULES[name], __name__), name)


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
