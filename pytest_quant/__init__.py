"""Quantization regression testing of language models, as a pytest plugin."""

__version__ = "0.1.0"
