"""Evaluation of LLaDA models: likelihood, lm-evaluation-harness, suites of benchmarks, comparison of scores.

Importing this package makes the model `llada` known to lm-evaluation-harness, if that is installed.
"""

from importlib.util import find_spec

from llada_core.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "confidence_order": ["matches_greedy_decoding", "score_in_confidence_order"],
        "harness": ["LLaDAHarnessModel"],
        "likelihood": ["LikelihoodEstimate", "LikelihoodOptions", "estimate_log_likelihoods"],
        "llada_core.digests": ["checkpoint_hash", "model_digest"],
        "llada_core.records": ["EvaluationRecord", "environment", "read_record", "write_record"],
    },
    extra="eval",
)


def _register_with_harness() -> None:
    """Let `lm_eval.api.registry.get_model("llada")` find our class, which is imported no earlier than that."""
    if find_spec("lm_eval") is None:
        return
    import lm_eval.models  # noqa: F401  The harness adds its own models only as long as the registry is empty.
    from lm_eval.api.registry import model_registry

    model_registry.register("llada", target=f"{__name__}.harness:LLaDAHarnessModel")


_register_with_harness()
