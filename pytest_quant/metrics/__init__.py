"""Measurement of perplexity, throughput and memory."""
