"""Renders the page to try the model on; nothing but its own script and styles may run in it."""

import base64
import hashlib
import re
from pathlib import Path

import jinja2

from app.serving.model import DEFAULT_SIGNATURE, Model


def render(model: Model) -> tuple[str, dict[str, str]]:
    """Returns the page, and the headers that it is sent with."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    text = jinja2.Environment(loader=loader, autoescape=True).get_template("page.html").render(
        version=model.version, about=model.version.about, signatures=model.signatures.values(),
        has_default=DEFAULT_SIGNATURE in model.signatures,
    )  # fmt: skip
    policy = (
        f"default-src 'none'; script-src {_hashes('script', text)}; style-src "
        f"{_hashes('style', text)}; img-src blob: data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    return text, {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}


def _hashes(tag: str, text: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = [hashlib.sha256(code.encode()).digest() for code in found]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
