"""The ground floor: what training, conversion, evaluation, serving and the command line share."""

from .lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "diffusion": [
            "NoisyBatch",
            "add_noise",
            "draw_uniform",
            "low_discrepancy_noise_levels",
            "mask_exact_count",
            "mask_independently",
            "masked_counts",
            "masking_probability",
            "row_generators",
            "uniform_noise_levels",
            "weighted_cross_entropy",
        ],
        "hub": ["fetch_checkpoint", "is_hub_id"],
        "loading": [
            "Checkpoint",
            "check_tokenizer",
            "complete_options",
            "load_checkpoint",
            "load_model",
            "load_tokenizer",
            "use_exported_loader",
        ],
        "tokenization": ["chat_template", "encode_chat", "missing_tokens", "prepare_tokenizer", "save_tokenizer"],
    },
)
