"""What a run is told by the command line, pytest's ini file and ``[tool.pytest-quant]``, and where each word of it
stands. What can be told is declared in :mod:`pytest_quant.declarations`."""
