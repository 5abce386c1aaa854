"""The server of a LLaDA model, `llada serve`, and the demo that shows its canvas, `llada demo`."""

from llada_core.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__, {"app": ["Server", "ServerConfig"], "gate": ["Limits"], "requests": ["Bounds"]}, extra="serve"
)
