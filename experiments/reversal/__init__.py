"""The reversal curse: LLaDA and an autoregressive model are asked for the line after and before another one.

`python -m experiments.reversal --help`. Source: LLaDA (arXiv:2502.09992), section 3.3 and Table 4.
"""
