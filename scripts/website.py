"""What mkdocs needs to make a site of the pages that GitHub shows as they are (`make site`; named in mkdocs.yml).

The pages are written for GitHub: headings have its anchors, and links lead to files of the repository. On the site
ARCHITECTURE, CONTRIBUTING, CHANGELOG and README are pages too, and so is every source file that a page links to. At the
end nothing on the site may be loaded from elsewhere: it is read offline, and tells nobody who reads it.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
TOP_PAGES = {
    "README.md": "readme.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "RELEASING.md": "releasing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages at the root of the repository, and what they are called on the site."""
SOURCE_PAGES = "source"
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
RECORDING = re.compile(r'<a href="([^"]+\.wav)">([^<"]+)</a>')
LANGUAGES = {".py": "python", ".c": "c", ".h": "c", ".toml": "toml", ".yml": "yaml", ".md": "markdown", ".json": "json"}
LOADED = re.compile(r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=[\"']?([^\"'\s>]+)")
STYLED = re.compile(r"<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|preconnect|icon))[^>]*\bhref=[\"']?([^\"'\s>]+)")
IN_STYLES = re.compile(r"(?:url\(|@import\s+)[\"']?([^\"')\s]+)")

log = logging.getLogger("mkdocs.website")


def anchor(heading: str, separator: str = "-") -> str:
    """The name under which a heading is linked to, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def on_config(config: Any) -> Any:
    """Gives headings GitHub's anchors."""
    config["mdx_configs"].setdefault("toc", {})["slugify"] = anchor
    return config


def on_files(files: Any, *, config: Any) -> Any:
    """Adds the pages of the repository's root, and a page for each source file that a page links to."""
    for name, page in TOP_PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_moved(text, "", page)))
    for path in sorted(_sources_linked_to()):
        files.append(File.generated(config, _source_page(path), content=_shown(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Turns what GitHub reads otherwise than mkdocs into what mkdocs reads."""
    path = page.file.src_uri
    if path not in TOP_PAGES.values() and not path.startswith(f"{SOURCE_PAGES}/"):
        markdown = _moved(markdown, posixpath.join("docs", posixpath.dirname(path)), path)
    return re.sub(r"^\|.*\|$", lambda row: re.sub(r"`[^`]*`", _without_escapes, row[0]), markdown, flags=re.MULTILINE)


def on_page_content(html: str, *, page: Any, config: Any, files: Any) -> str:
    """Puts a player before each link to a recording, which GitHub shows as a link alone."""
    return RECORDING.sub(
        lambda link: f'<audio controls preload="none" src="{link[1]}" aria-label="{link[2]}"></audio><br>{link[0]}',
        html,
    )


def on_post_build(*, config: Any) -> None:
    """Looks for what a reader's browser would load from elsewhere.

    Raises:
        PluginError: If there is something.
    """
    found = []
    for path in sorted(Path(config["site_dir"]).rglob("*")):
        pattern = {".html": (LOADED, STYLED), ".css": (IN_STYLES,)}.get(path.suffix, ())
        text = path.read_text(encoding="utf-8") if pattern else ""
        for address in (match[1] for each in pattern for match in each.finditer(text)):
            if urlsplit(address).netloc:
                found.append(f"{path.relative_to(config['site_dir'])}: {address}")
    if found:
        raise PluginError("The site would load from elsewhere:\n" + "\n".join(found))


def _without_escapes(code: re.Match[str]) -> str:
    r"""Code in a table: GitHub wants ``\|`` there, and mkdocs would show the backslash."""
    return code[0].replace(r"\|", "|")


def _moved(markdown: str, folder: str, page: str) -> str:
    """A page of a folder of the repository, with its links as they are to be on the site."""

    def link(match: re.Match[str]) -> str:
        target, fragment = match[1], match[2] or ""
        if urlsplit(target).scheme:
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        place = _place(path)
        if place is None:
            return match[0]
        return posixpath.relpath(place, posixpath.dirname(page) or ".") + fragment

    return LINK.sub(link, markdown)


def _place(path: str) -> str | None:
    """Where a file of the repository is on the site; None if it is not there."""
    if path in TOP_PAGES:
        return TOP_PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return _source_page(path) if (ROOT / path).is_file() else None


def _source_page(path: str) -> str:
    return f"{SOURCE_PAGES}/{path}.md"


def _sources_linked_to() -> set[str]:
    """Files outside docs, and not pages of their own, that some page links to."""
    found = set()
    for page in [*(ROOT / name for name in TOP_PAGES), *(ROOT / "docs").rglob("*.md")]:
        folder = page.parent.relative_to(ROOT).as_posix()
        for match in LINK.finditer(page.read_text(encoding="utf-8")):
            path = posixpath.normpath(posixpath.join(folder, match[1]))
            inside = path in TOP_PAGES or path.startswith(("docs/", ".."))
            if not urlsplit(match[1]).scheme and not inside and (ROOT / path).is_file():
                found.add(path)
    return found


def _shown(path: str) -> str:
    """A source file as a page, which the search leaves out."""
    text = (ROOT / path).read_text(encoding="utf-8")
    fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall(r"`{3,}", text)), 3)
    language = LANGUAGES.get(Path(path).suffix, "text")
    head = "---\nsearch:\n  exclude: true\nhide:\n  - navigation\n---\n\n"
    return f"{head}# {path}\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"
