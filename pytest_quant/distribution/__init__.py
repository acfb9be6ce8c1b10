"""Tests spread over the workers of pytest-xdist: which belong together, who runs them, on which device."""
