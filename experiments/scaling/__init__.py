"""Scaling: LLaDA and autoregressive models of several sizes, held-out likelihood against training FLOPs.

`python -m experiments.scaling --help`. Source: LLaDA (arXiv:2502.09992), section 3.2 and Figure 3,
which compares benchmarks; at a scale where those are at chance, the likelihood takes their place.
"""
