"""Settings of the site that `make docs` builds."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from myst_nb.core import render
from pygments.lexers import PythonLexer
from sphinx.highlighting import lexers

import plug_jax

project = "plug-jax"
author = "The plug-jax authors"
copyright = author
version = release = plug_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"plug-jax {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 3
default_role = "code"
highlight_language = "text"  # of what says nothing; commands and output alike
lexers["gin"] = PythonLexer()

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
python_use_unqualified_type_names = True

# Tutorials are executed as they stand, in processes that see one CPU device and find `plug-jax`.
nb_execution_mode = "cache"
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
os.environ.update(
    JAX_PLATFORMS="cpu",
    JAX_NUM_PROCESSES="1",
    TF_CPP_MIN_LOG_LEVEL="3",
    COLUMNS="100",
    TTY_COMPATIBLE="0",  # no bars and colours: Jupyter's kernel asks for them
    PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
)


def merge_streams(outputs: list[Any]) -> list[Any]:
    """One output for each stream of a cell; myst-nb's own would end lines at each write."""
    merged: dict[Any, Any] = {}
    for output in outputs:
        key = output.get("name", len(merged))
        if key in merged:
            merged[key]["text"] += output["text"]
        else:
            merged[key] = type(output)(output)
    return list(merged.values())


render.coalesce_streams = merge_streams


def literal_blocks(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """What is indented below a line with a colon is an example, unless napoleon knows the line."""
    text = "\n".join(lines)
    sections = "Args|Attributes|Returns|Yields|Raises"
    pattern = rf"^( *)(?!(?:{sections}):)(.*):\n\n?(?=\1 +\S)"
    lines[:] = re.sub(pattern, r"\1\2::\n\n", text, flags=re.MULTILINE).split("\n")


def setup(app: Any) -> None:
    """Called by Sphinx; before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", literal_blocks, priority=400)
