"""Texts and protocols: which windows are scored, and under which identity."""
