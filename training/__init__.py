"""Training of LLaDA models on the tools of Hugging Face: configuration, data, loss and trainers."""

from llada_core.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "adapters": ["LORA_TARGET_MODULES", "merge_adapter"],
        "batch": ["LLaDACollator"],
        "diffusion_trainer": ["write_card"],
        "data": ["load_documents", "pack_documents"],
        "dpo": ["LLaDADPOConfig", "LLaDADPOTrainer"],
        "kto": ["LLaDAKTOConfig", "LLaDAKTOTrainer"],
        "grpo": ["LLaDAGRPOConfig", "LLaDAGRPOTrainer"],
        "grpo_command": ["grpo_main"],
        "log_probability": [
            "draw_noises",
            "elbo_log_probability",
            "elbo_token_terms",
            "quadrature_levels",
            "stratified_levels",
            "token_terms",
        ],
        "loss": ["pretraining_loss", "score_masked", "sft_loss"],
        "noise": ["draw_noise", "random_lengths", "training_noise_levels"],
        "plots": ["plot_loss_curve"],
        "preference_command": ["dpo_main", "kto_main"],
        "pretrain_command": ["pretrain_main"],
        "pretraining": ["LLaDAPretrainingConfig", "LLaDAPretrainingTrainer"],
        "puzzles": ["Countdown", "Sudoku", "make_countdowns", "make_sudokus"],
        "rewards": ["countdown_reward", "format_reward", "math_reward", "sudoku_reward"],
        "sft": ["LLaDASFTConfig", "LLaDASFTTrainer"],
        "sft_command": ["sft_main"],
    },
    extra="train",
)
