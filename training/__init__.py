"""Training of LLaDA models on the tools of Hugging Face: configuration, data, loss and trainers."""

from llada_core.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "adapters": ["LORA_TARGET_MODULES", "merge_adapter"],
        "collator": ["LLaDACollator"],
        "config": ["LLaDAPretrainingConfig"],
        "data": ["load_documents", "pack_documents"],
        "diffusion_trainer": ["write_card"],
        "log_probability": ["draw_noises", "elbo_log_probability"],
        "loss": ["pretraining_loss", "score_masked", "sft_loss"],
        "noise": ["draw_noise", "random_lengths", "training_noise_levels"],
        "plots": ["plot_loss_curve"],
        "pretrain_command": ["pretrain_main"],
        "pretraining": ["LLaDAPretrainingTrainer"],
        "registration": ["register_auto_classes"],
        "sft": ["LLaDASFTTrainer"],
        "sft_command": ["sft_main"],
        "sft_config": ["LLaDASFTConfig"],
    },
    extra="train",
)
