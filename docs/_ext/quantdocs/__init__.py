"""A Sphinx extension: the pages of the reference, written from the code when the site is built."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantdocs import api, changelog, commands, devices, fixtures, formats, markers, options, verdicts

FOLDER = "generated"
"""Below the site's source; git ignores it."""
PAGES = {
    "markers": markers.page,
    "fixtures": fixtures.page,
    "options": options.page,
    "commands": commands.page,
    "formats": formats.page,
    "devices": devices.page,
    "verdicts": verdicts.page,
    "api": api.page,
    "changelog": changelog.page,
}
"""What makes each page, by the page's name."""


def write(source: Path) -> Mapping[str, Path]:
    """Write the pages below ``source``, those apart that are as they were; every page by its name."""
    folder = source / FOLDER
    folder.mkdir(exist_ok=True)
    written = {}
    for name, page in PAGES.items():
        path = folder / f"{name}.{'md' if name == 'changelog' else 'rst'}"
        text = page()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            unfinished = path.with_suffix(f".{os.getpid()}")  # two builds at once may read what the other writes
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(path)
        written[name] = path
    return written


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("builder-inited", lambda app: write(Path(app.srcdir)))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
