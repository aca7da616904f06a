"""Image files of every kind, and how Pillow decodes them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

random = np.random.default_rng(0)

LARGE, SMALL = ">", "<"  # orders of bytes

# Smooth, or JPEG's colours would differ between decoders; and without symmetry.
PHOTO = Image.fromarray(random.integers(0, 256, [5, 8, 3], np.uint8)).resize((93, 61), 3)


def saved(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}) | options)
    return file.getvalue()


def pillows(content):
    """Returns a file as Pillow decodes it: upright, on white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGBA")
    return np.array(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image))[..., :3]


def exif(orientation, order=LARGE, kind=3, count=1, begin=8):
    """Returns a block of EXIF, with an entry before the orientation's and one after it."""
    value, unit = (struct.pack(order + "Hxx", x) for x in (orientation, 2))
    entries = [(0x10F, 2, 4, b"me\0\0"), (0x112, kind, count, value), (0x128, 3, 1, unit)]
    content = struct.pack(order + "H", len(entries))
    content += b"".join(struct.pack(order + "HHI", *e[:3]) + e[3] for e in entries)
    head = {LARGE: b"MM\0*", SMALL: b"II*\0"}[order] + struct.pack(order + "I", begin)
    return head + bytes(begin - 8) + content + bytes(4)


def everything(dataset):
    """Returns all batches of a data set joined: inputs, targets, and ids or weights."""
    return [np.concatenate([y.numpy() for y in x]) for x in zip(*dataset, strict=True)]


def segment(code, content):
    return bytes([0xFF, code]) + struct.pack(">H", len(content) + 2) + content


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(
        ">I", zlib.crc32(name + content)
    )  # fmt: skip


def png(width, height, depth, kind, rows, *more, interlace=0):
    """Returns a PNG of bytes by rows, with chunks before its pixels, as Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlace)
    pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def chunks(content):
    """Returns the chunks of a PNG."""
    at, found = 8, []
    while at < len(content):
        end = at + 12 + struct.unpack_from(">I", content, at)[0]
        found.append(content[at:end])
        at = end
    return found


def with_exif(content, block, before=b"", at=2):
    """Returns a JPEG or PNG with an EXIF block behind `before`, at a byte or (PNG) a chunk."""
    if content.startswith(b"\xff\xd8"):
        app1 = segment(0xE1, b"Exif\0\0" + block)
        return content[:at] + before + app1 + content[at:]
    found = chunks(content)
    return content[:8] + b"".join([*found[:at], before, chunk(b"eXIf", block), *found[at:]])


PLAIN = {kind: saved(PHOTO, kind) for kind in ("JPEG", "PNG")}


def gradient(mode, alpha):
    """Returns an image whose alpha rises from 0 to 255; where it is 0 there is a colour too."""
    ramp = np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (40, 1))
    if alpha != "ramp":
        ramp = (ramp > 99).astype(np.uint8) * 255
    image = PHOTO.resize((64, 40)).convert("L" if mode == "LA" else "RGB")
    image.putalpha(Image.fromarray(ramp))
    return image


OPAQUE = {
    "grey JPEG": saved(PHOTO.convert("L")),
    "progressive": saved(PHOTO, progressive=True),
    "4:4:4": saved(PHOTO, subsampling=0),
    "4:2:2": saved(PHOTO, subsampling=1),
    "optimised": saved(PHOTO, optimize=True),
    "restarts": saved(PHOTO, restart_marker_rows=1),
    "of low quality": saved(PHOTO, quality=20),
    "RGB in JPEG": saved(PHOTO, keep_rgb=True),
    "CMYK": saved(PHOTO.convert("CMYK")),
    "1 bit": saved(PHOTO.convert("1"), "PNG"),
    "grey PNG": saved(PHOTO.convert("L"), "PNG"),
    **{f"palette of {b} bits": saved(PHOTO.quantize(2**b), "PNG", bits=b) for b in (1, 2, 4, 8)},
}
