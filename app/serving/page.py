"""The page to try the model on; only what is in it may run, by its hashes."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import jinja2

from app.serving.model import Model
from app.serving.signatures import DEFAULT


class Page:
    """A page, and the headers that it goes with."""

    def __init__(self, model: Model) -> None:
        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        page = jinja2.Environment(loader=loader, autoescape=True).get_template("page.html")
        self.text = page.render(
            found=model.found, about=model.found.about, signatures=model.signatures.values(),
            has_default=DEFAULT in model.signatures,
        )  # fmt: skip

        def allowed(tag: str) -> str:
            found = re.findall(rf"<{tag}>(.*?)</{tag}>", self.text, re.DOTALL)
            digests = [hashlib.sha256(code.encode()).digest() for code in found]
            return " ".join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests)

        policy = (
            f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')}; "
            "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        self.headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
