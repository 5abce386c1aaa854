"""Runs the command as `python -m llada_cli`."""

from .main import app

app(prog_name="llada")
