"""Sphinx configuration. generate.py creates the generated pages: tables of results, help texts, tutorials."""

import os
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generate  # noqa: E402

generate.everything()

import sparsemax_nb  # noqa: E402

project, author, copyright = "sparsemax_nb", "the sparsemax_nb developers", "the sparsemax_nb developers"
version = release = sparsemax_nb.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.viewcode", "numpydoc", "myst_nb"]
exclude_patterns = ["_build", "*.py", "generated/parts", "generated/tutorials/lesson.py", "generated/ipython"]
default_role = "py:obj"
smartquotes = False  # keep the hyphens of --option

html_theme, html_title, html_static_path, html_css_files = "furo", "sparsemax_nb", ["_static"], ["site.css"]
html_copy_source, html_show_sphinx = False, False

autodoc_default_options = {
    "members": True,
    "inherited-members": "tuple,ValueError,FloatingPointError,object",
    "member-order": "bysource",
}
autosummary_generate = False
maximum_signature_line_length = 90
numpydoc_show_class_members = False

# Tutorials (py:percent) are run while the site is built. The Jupyter kernel reads its settings from IPYTHONDIR.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode, nb_execution_timeout, nb_execution_raise_on_error = "force", 300, True
nb_merge_streams = True
os.environ["IPYTHONDIR"] = str(generate.IPYTHON)

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence", "attrs_block"]
myst_heading_anchors = 3
myst_update_mathjax = False
html_math_renderer = "mathml"


def _inline(self, node):
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _display(self, node):
    self.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>\n')
    raise nodes.SkipNode


def setup(app):
    """Render formulas as MathML, which browsers display without JavaScript."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
