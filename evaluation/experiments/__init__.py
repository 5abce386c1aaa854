"""Experiments of the paper at a scale that anyone can rerun."""
