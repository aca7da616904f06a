"""Renders the page to try the model on; nothing but its own script and styles may run in it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import jinja2

from app.serving.model import DEFAULT_SIGNATURE, Model


class Page:
    """The page, and the headers that it is sent with."""

    def __init__(self, model: Model) -> None:
        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        page = jinja2.Environment(loader=loader, autoescape=True).get_template("page.html")
        self.text = page.render(
            version=model.version, about=model.version.about,
            signatures=model.signatures.values(),
            has_default=DEFAULT_SIGNATURE in model.signatures,
        )  # fmt: skip
        policy = (
            f"default-src 'none'; script-src {self._hashes('script')}; "
            f"style-src {self._hashes('style')}; img-src blob: data:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self.headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}

    def _hashes(self, tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", self.text, re.DOTALL)
        digests = [hashlib.sha256(code.encode()).digest() for code in found]
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
