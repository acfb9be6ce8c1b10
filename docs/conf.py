"""How the documentation site is built: ``make docs``.

The pages are Markdown that reads as well on GitHub; the reference is generated from the code when the site is built, by
``_ext/quantdocs``, and nothing generated is committed.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from pytest_quant import __version__  # noqa: E402  found by the line above, whatever is installed

project = "pytest-quant"
author = copyright = "The pytest-quant authors"
release = __version__
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "quantdocs"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
root_doc = "index"
exclude_patterns = ["_build", "_ext"]

myst_heading_anchors = 4  # as GitHub's
smartquotes = False  # what is typed stays as it is typed

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
add_module_names = False
nitpick_ignore_regex = [
    # no inventory of another project is fetched, so that the site is built without a network
    ("py:.*", r"(?!pytest_quant).*"),
    ("py:class", r"pytest_quant\.engines\.candidates\.Layer"),  # of no use to a test suite
]

html_theme = "furo"
html_title = "pytest-quant"
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5cad", "color-brand-content": "#0b5cad"},
    "dark_css_variables": {"color-brand-primary": "#7cb7ff", "color-brand-content": "#7cb7ff"},
}
html_static_path = ["_static"]
html_css_files = ["wide-tables.css"]
html_js_files = ["scrollable.js"]
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True
