"""`python -m llada_evaluation …` is the harness's own command, `lm_eval …`, which then knows the model `llada`."""

from lm_eval.__main__ import cli_evaluate

if __name__ == "__main__":
    cli_evaluate()
