"""Checkpoints in and out: autoregressive and official checkpoints, publishing, and export through Optimum."""

from llada_core.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "autoregressive": ["convert_autoregressive"],
        "export": ["export_model"],
        "exported_model": ["load_exported"],
        "gguf_file": ["export_gguf"],
        "official": ["convert_official", "verify_folder"],
        "ort_model": ["ORTModelForLLaDA"],
        "ov_model": ["OVModelForLLaDA"],
        "publish": ["CardFacts", "Upload", "prepare_upload", "push_upload"],
    },
)
