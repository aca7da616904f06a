"""Bodies that are no JSON, by their type or their first bytes: what was sent, and what to send."""

from __future__ import annotations

from app.serving.errors import RequestError, cut

RIGHT = {
    "image": '{"instances": [{"b64": "<the file in base64>"}]}',
    "text": '{"instances": ["a text"]}',
    None: '{"instances": [...]}',
}
# Others are let through, whatever they say: curl calls each -d a form.
OTHERS = {"multipart/": "a form with files", "image/": "an image", "audio/": "a sound",
          "video/": "a film"}  # fmt: skip
MAGIC = {
    b"\xff\xd8\xff": "a JPEG file", b"\x89PNG\r\n": "a PNG file", b"GIF8": "a GIF file",
    b"RIFF": "a WebP file",
}  # fmt: skip


def must_be_json(content_type: str, kind: str | None) -> None:
    """Refuses a body by the type that its sender gave it.

    Raises:
        RequestError: it is of another kind.
    """
    given = content_type.partition(";")[0].strip().lower()
    for prefix, what in OTHERS.items():
        if given.startswith(prefix):
            raise RequestError(
                415, f"the body is {what} ({cut(given)}), and must be JSON: send {RIGHT[kind]} as "
                "application/json.",
            )  # fmt: skip


def must_be_text(body: bytes | bytearray) -> None:
    """Refuses what begins as other files do.

    Raises:
        RequestError: says what it is.
    """
    for magic, what in MAGIC.items():
        if body.startswith(magic):
            raise RequestError(400, f"the body is {what}, and must be JSON: send {RIGHT['image']}.")
    if body.startswith(b"\x1f\x8b"):
        raise RequestError(400, "the body is compressed: say so by Content-Encoding: gzip.")
