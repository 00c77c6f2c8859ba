"""The documentation site: ``make docs`` builds it in build/site.

The sources are the whole repository, so that a relative link means the same on the site and where
the repository is browsed: to a page, it is a page; to any other file, a download.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.errors import ExtensionError

import hyperlight
from hyperlight.io import hub

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment
    from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "docs" / "live")]  # for pictures.py, live.py
import live  # noqa: E402
import pictures  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"].get("Repository")

project = "HyperLight"
author = PROJECT["authors"][0]["name"]
project_copyright = author
release = version = hyperlight.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "results/**",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
]
# Folders without pages, which need not be searched.
exclude_patterns = [".*", "benchmarks", "build", "dist", "examples", "runs", "src", "tests"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

myst_heading_anchors = 4

# --- the API reference ----------------------------------------------------------------------

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # torch.nn.Module has text about every forward
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autoclass_content = "class"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Shape"]
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"
# Types of other libraries, whose documentation is not at hand when the site is built, and private
# types in signatures, whose values the docstrings describe.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|collections|os|pathlib|abc|inspect)\..*"),
    ("py:.*", r"hyperlight\.(?!io\.hub\.)[a-z_]+\..*|hyperlight\..*Settings"),
]


def public_names(module: ModuleType, prefix: str) -> dict[str, str]:
    """Where each public thing is defined, and the name under which users import it."""
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    things = {name: getattr(module, name) for name in names}
    return {
        f"{thing.__module__}.{thing.__qualname__}": f"{prefix}.{name}"
        for name, thing in things.items()
        if hasattr(thing, "__qualname__")
    }


PUBLIC = {
    **public_names(hyperlight.testing, "hyperlight.testing"),
    **public_names(hyperlight.optim, "hyperlight.optim"),
    **public_names(hub, "hyperlight.io.hub"),
    **public_names(hyperlight.io, "hyperlight.io"),
    **public_names(hyperlight, "hyperlight"),
}


def resolve_definition(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Find what a type hint names by its place of definition under its public name."""
    target = PUBLIC.get(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or target is None:
        return None
    python = env.get_domain("py")
    return python.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, content)


def tidy_signature(
    app: Sphinx,
    what: str,
    name: str,
    thing: object,
    options: object,
    arguments: str | None,
    returns: str | None,
) -> tuple[str, str | None] | None:
    """Write what Sphinx cannot parse, or a reader does not need, in another way."""
    if arguments is None:
        return None
    if what == "class" and arguments.startswith("(*args"):  # that of torch.nn.Module
        arguments = "()"
    arguments = arguments.replace("<factory>", "...")  # of a dataclass
    return arguments.replace(", labels=None", ""), returns  # of HyperModel.forward, for trainers


# --- links and formulas ---------------------------------------------------------------------


def resolve_folders(app: Sphinx, document: nodes.document) -> None:
    """Turn a link to a folder into one to its README, the repository, or the next README above."""
    page = Path(app.env.doc2path(app.env.docname)).parent
    for node in list(document.findall(addnodes.pending_xref)):
        if node.get("reftype") != "myst" or node.get("refdomain") == "doc":
            continue
        folder = (page / node["reftarget"]).resolve()
        if not folder.is_dir() or ROOT not in folder.parents:
            continue
        path = folder.relative_to(ROOT)
        readmes = [f"{place.as_posix()}/README" for place in (path, *path.parents)]
        readme = next((name for name in readmes if name in app.env.found_docs), None)
        if REPOSITORY and readme != readmes[0]:
            link = nodes.reference("", "", *node.children, refuri=f"{REPOSITORY}/tree/main/{path}")
            node.replace_self(link)
        elif readme:
            node["refdomain"], node["reftarget"], node["reftargetid"] = "doc", readme, None


# Spaces of ``0.74 ± 0.06``, ``98 %``, ``1.46 (1.38 to 1.58)`` and ``0.99 [0.98, 1.00]``.
_SPREAD = re.compile(
    r"(?<=\d) (?=±|%|to \d|\[\d)|(?<=±) (?=\d)|(?<=\d to) (?=\d)|(?<=\d,) (?=[\d.]+\])"
)


def keep_spreads(app: Sphinx, document: nodes.document) -> None:
    """Keep a number and its spread on one line, in narrow columns too."""
    verbatim = nodes.literal | nodes.literal_block | nodes.math | nodes.math_block
    for text in list(document.findall(nodes.Text)):
        kept = _SPREAD.sub("\N{NO-BREAK SPACE}", text)
        if kept != text and not isinstance(text.parent, verbatim):
            text.parent.replace(text, nodes.Text(kept))


def inline_formula(translator: HTML5Translator, node: nodes.math) -> None:
    """Write MathML, which browsers draw without a script from elsewhere."""
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def block_formula(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


html_math_renderer = "mathml"

# --- the page on which networks run live ----------------------------------------------------

LIVE = ROOT / "docs" / "live" / "index.html"
RUNTIME: dict[str, bytes] = {}  # onnxruntime-web; if it is empty, the site has no live page


def fetch_runtime(app: Sphinx) -> None:
    """Fetch onnxruntime-web; without it the site has no live page, which .ci/run refuses."""
    if app.builder.format != "html":
        return
    try:
        RUNTIME.update(live.runtime())
    except OSError as error:
        if os.environ.get("HYPERLIGHT_BROWSER") == "required":
            raise ExtensionError(f"The site needs its live page. {error}") from error
        print(f"The site is built without its live page. {error}", file=sys.stderr)


def resolve_live(app: Sphinx, document: nodes.document) -> None:
    """Link to the live page, in place of its source; or say that the site lacks it."""
    folder = Path(app.env.doc2path(app.env.docname)).parent
    for node in list(document.findall(addnodes.download_reference)):
        target, text = node["reftarget"], node.astext()
        if (folder / target).resolve() != LIVE:
            continue
        if RUNTIME:
            node.replace_self(nodes.reference("", text, refuri=target))
        else:
            node.replace_self(nodes.Text(f"{text} (not in this site, built without npm)"))


def build_live(app: Sphinx, exception: Exception | None) -> None:
    """Train the families of the live page, and write it where the site has its source."""
    if RUNTIME and exception is None:
        logging.getLogger().setLevel(logging.WARNING)  # a style that furo imports asks for INFO
        folder = Path(app.outdir, LIVE.parent.relative_to(ROOT))
        live.build(folder, [live.registration(), live.autoencoder()], RUNTIME)


# --- the gallery: examples/plot_*.py, executed when the site is built -----------------------

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "docs/gallery",
    "filename_pattern": r"plot_",
    "image_scrapers": ("pictures.scrape",),
    "remove_config_comments": True,
    "write_computation_times": False,
}


def describe_thumbnails(app: Sphinx, document: nodes.document) -> None:
    """Give the pictures of the gallery's index the descriptions that they have on their pages."""
    if app.env.docname != "docs/gallery/index":
        return
    for image in document.findall(nodes.image):
        name = Path(image["uri"]).stem.removeprefix("sphx_glr_").removesuffix("_thumb")
        source = ROOT / "docs" / "gallery" / f"{name}.rst"
        image["alt"] = image.get("alt") or pictures.alt_of(source.read_text("utf-8"))


# --- the look -------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"HyperLight {release}"
html_static_path = ["site/style.css"]
html_css_files = ["style.css"]
html_extra_path = ["site/index.html"]  # the first page is in docs/
html_show_sourcelink = False
html_copy_source = False
if REPOSITORY:
    html_theme_options = {"source_repository": REPOSITORY, "source_branch": "main"}


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("missing-reference", resolve_definition)
    app.connect("autodoc-process-signature", tidy_signature)
    app.connect("doctree-read", resolve_folders)
    app.connect("builder-inited", fetch_runtime)
    app.connect(
        "doctree-read", resolve_live, priority=400
    )  # before files to download are collected
    app.connect("doctree-read", keep_spreads)
    app.connect("doctree-read", describe_thumbnails)
    app.connect("build-finished", build_live)
    app.add_html_math_renderer("mathml", (inline_formula, None), (block_formula, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
