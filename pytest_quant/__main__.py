"""``python -m pytest_quant``, the command of an environment that is not on the path."""

from __future__ import annotations

import sys

from pytest_quant.cli import main

if __name__ == "__main__":
    sys.exit(main())
