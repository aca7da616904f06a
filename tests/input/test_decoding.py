"""The one decoder, against Pillow's: every kind of image, upright, on white, whole or a window."""

import io
import os
import struct

import numpy as np
import pytest
import tensorflow as tf
from pictures import (
    LARGE,
    OPAQUE,
    PHOTO,
    PLAIN,
    SMALL,
    chunk,
    chunks,
    exif,
    gradient,
    pillows,
    png,
    random,
    saved,
    segment,
    with_exif,
)
from PIL import Image, ImageOps

from input.failures import sentence
from input.images import Images, decoding, metadata, preprocessing
from input.images.preprocessing import Preprocessing
from input.raw import Limits

pytestmark = pytest.mark.fast

EXAMPLES = int(os.environ.get("SCALEPROOF_FUZZ_EXAMPLES", "150"))
FUZZED = Limits(pixels=20_000)


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def whole(content):
    header = decoding.read_header(content)
    return decoding.image(header), header.size


@tf.function(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([4], tf.int32)])
def part(content, window):
    return decoding.image(decoding.read_header(content), window)


def decoded(content):
    assert decoding.image_fault(content) is None
    Limits().check("image", content)
    image, size = whole(tf.constant(content))
    assert image.dtype == tf.uint8 and image.shape == (*size.numpy(), 3)
    return image.numpy()


def must_be_pillows(content, most=None):
    """Equal; of a JPEG but for its arithmetic, which TensorFlow has in less exact integers."""
    ours, theirs = decoded(content), pillows(content)
    assert ours.shape == theirs.shape
    difference = np.abs(ours.astype(int) - theirs)
    is_jpeg = content.startswith(b"\xff\xd8")
    assert difference.max() <= (most if most is not None else 14 if is_jpeg else 0)
    assert difference.mean() <= 2
    return ours


@pytest.mark.parametrize("order", [LARGE, SMALL])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_seen_upright(kind, orientation, order):
    content = with_exif(PLAIN[kind], exif(orientation, order))
    ours = must_be_pillows(content)
    assert (ours.shape == (93, 61, 3)) == (orientation > 4)
    if orientation > 1:  # a decoder that ignores it does not pass
        as_stored = decoded(PLAIN[kind])
        assert ours.shape != as_stored.shape or np.abs(ours.astype(int) - as_stored).max() > 50


BEFORE = {
    "JFIF": (b"", 20),
    "a profile": (segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000)), 2),
    "Photoshop's": (segment(0xED, b"Photoshop 3.0\0" + bytes(31)), 20),
    "a comment": (segment(0xFE, b"Exif\0\0 is not in here, nor is \xff\xda\xff\xe1"), 20),
    "another APP1": (segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"), 2),
    "filling": (b"\xff\xff\xff", 20),
    "all": (b"".join(segment(c, bytes(200 + c)) for c in (*range(0xE2, 0xF0), 0xFE)) * 5, 20),
    "tables": (b"", 20 + 2 * 69),
}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("order", [LARGE, SMALL])
def test_exif_may_follow_other_segments(before, order):
    extra, at = BEFORE[before]
    content = with_exif(PLAIN["JPEG"], exif(6, order), extra, at)
    assert must_be_pillows(content).shape == (93, 61, 3)


def test_the_first_exif_counts_and_none_behind_the_pixels():
    content = PLAIN["JPEG"]
    ours = must_be_pillows(with_exif(content, exif(6), segment(0xE1, b"Exif\0\0" + exif(3))))
    assert ours[0, 0].tolist() == decoded(content)[-1, -1].tolist()
    assert decoded(content + segment(0xE1, b"Exif\0\0" + exif(6))).shape == (61, 93, 3)
    png = PLAIN["PNG"]
    assert decoded(png + chunk(b"eXIf", exif(6))).shape == (61, 93, 3)


@pytest.mark.parametrize("at", [1, -1])
def test_the_exif_of_a_png_stands_anywhere(at):
    random_pixels = Image.fromarray(random.integers(0, 256, [300, 301, 3], np.uint8))
    content = saved(random_pixels, "PNG")
    assert len(chunks(content)) > 5  # several of pixels
    content = with_exif(content, exif(8), chunk(b"tEXt", b"eXIf\0tRNS"), at)
    assert must_be_pillows(content).shape == (301, 300, 3)


DAMAGED = {
    "nothing": b"",
    "its order only": b"MM\0*",
    "another order": b"MI\0*" + exif(6)[4:],
    "cut in the entries": exif(6)[:30],
    "entries far away": b"MM\0*" + struct.pack(">I", 2**32 - 1) + exif(6)[8:],
    "entries beyond": b"MM\0*" + struct.pack(">I", 10_000) + exif(6)[8:],
    "entries in the head": b"MM\0*" + struct.pack(">I", 2) + exif(6)[8:],
    "zero": exif(0),
    "nine": exif(9),
    "huge": exif(65_535),
    "no number": exif(6, kind=2),
    "two": exif(6, count=2),
    "65,536 of them": exif(6, count=65_537),
    "more entries than there are": exif(1)[:8] + b"\xff\xff" + exif(1)[10:],
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_exif_says_nothing(damage, kind):
    content = with_exif(PLAIN[kind], DAMAGED[damage])
    assert np.array_equal(decoded(content), decoded(PLAIN[kind]))


@pytest.mark.parametrize("order", [LARGE, SMALL])
def test_entries_stand_anywhere_in_the_block(order):
    assert must_be_pillows(with_exif(PLAIN["JPEG"], exif(6, order, begin=1000))).shape[0] == 93
    many = exif(6, order)  # entries are more than there are: those that are there count
    count = struct.pack(order + "H", 500)
    assert decoded(with_exif(PLAIN["JPEG"], many[:8] + count + many[10:])).shape[0] == 93


@pytest.mark.parametrize("alpha", ["ramp", "all or none"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_shines_through_is_on_white(mode, alpha):
    ours = must_be_pillows(saved(gradient(mode, alpha), "PNG"), most=1)
    assert (ours[:, 0] == 255).all()  # whatever colour is hidden there
    assert must_be_pillows(with_exif(saved(gradient(mode, alpha), "PNG"), exif(5)), most=1).any()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_with_transparency(bits):
    image = PHOTO.quantize(2**bits)
    for clear in (0, bytes([0, 128, 255][: 2**bits])):
        ours = must_be_pillows(saved(image, "PNG", bits=bits, transparency=clear), most=1)
        assert (ours != decoded(saved(image, "PNG", bits=bits))).any()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_grey_that_is_transparent(depth):
    """Of few bits: TensorFlow's decoder fills the alpha of those without it with nearly nothing."""
    row, most = [0b00011011, 0b11100100], 2**depth - 1
    values = (
        np.unpackbits(np.array(row, np.uint8)).reshape(-1, depth) @ (1 << np.arange(depth))[::-1]
    )
    grey = np.tile((values * (255 // most))[:, None], 3)
    clear = chunk(b"tRNS", struct.pack(">H", 1))
    width = 16 // depth
    assert np.array_equal(decoded(png(width, 2, depth, 0, [row, row]))[1], grey)
    ours = decoded(png(width, 2, depth, 0, [row, row], clear))
    assert np.array_equal(ours[1], np.where(values[:, None] == 1, 255, grey))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("kind", [0, 2])
def test_a_colour_that_is_transparent(kind, depth):
    channels, width = (1 if kind == 0 else 3), depth // 8
    values = random.integers(0, 256, [5, 4, channels * width], np.uint8)
    values[2, 1] = 7
    clear = b"\0" * (2 - width) + bytes([7] * width)
    content = png(4, 5, depth, kind, values.reshape(5, -1), chunk(b"tRNS", clear * channels))
    high = np.broadcast_to(values[..., ::width], [5, 4, 3]).copy()
    high[2, 1] = 255
    assert np.array_equal(decoded(content), high)


def test_alpha_of_16_bits():
    values = random.integers(0, 256, [6, 5, 8], np.uint8)
    content = png(5, 6, 16, 6, values.reshape(6, -1))
    alpha = values[..., 6:7] / 255
    wanted = values[..., :6:2] * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(decoded(content), wanted, atol=0.51)


def test_transparency_behind_the_pixels_is_none():
    content = saved(PHOTO, "PNG")
    head, tail = content[:-12], content[-12:]
    assert np.array_equal(decoded(head + chunk(b"tRNS", bytes(6)) + tail), decoded(content))


def test_opaque_alpha_changes_no_bit():
    opaque = PHOTO.copy()
    opaque.putalpha(255)
    assert np.array_equal(decoded(saved(opaque, "PNG")), np.array(PHOTO))


@pytest.mark.parametrize("kind", OPAQUE)
def test_the_kinds_of_files(kind):
    must_be_pillows(OPAQUE[kind])
    if kind != "4:2:2":
        must_be_pillows(with_exif(OPAQUE[kind], exif(7, SMALL)))


def test_an_image_without_colours_has_the_higher_8_of_16_bits():
    values = random.integers(0, 65536, [7, 9], np.uint16)
    content = saved(Image.fromarray(values), "PNG")
    assert np.array_equal(decoded(content), np.repeat(values[..., None] >> 8, 3, -1))
    rgb = random.integers(0, 256, [7, 9, 6], np.uint8)
    assert np.array_equal(decoded(png(9, 7, 16, 2, rgb.reshape(7, -1))), rgb[..., ::2])


def test_inks_are_inverted_with_and_without_adobes_segment():
    """As Pillow and the browsers take them; YCCK too."""
    content = OPAQUE["CMYK"]
    assert content[2:4] == b"\xff\xee"
    must_be_pillows(content[:2] + content[18:])
    ycck = bytearray(content)
    ycck[17] = 2
    must_be_pillows(bytes(ycck))


def test_interlaced():
    """Adam7, written by hand."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
              (0, 1, 1, 2)]  # fmt: skip
    for channels, kind in ((3, 2), (4, 6)):
        image = random.integers(0, 256, [13, 11, channels], np.uint8)
        rows = [row for x, y, dx, dy in passes for row in image[y::dy, x::dx] if row.size]
        content = png(11, 13, 8, kind, rows, interlace=1)
        assert np.array_equal(Image.open(io.BytesIO(content)), image)
        must_be_pillows(content, most=1 if kind == 6 else 0)


def test_an_animated_png_is_its_first_frame():
    frames = [PHOTO.convert("RGB"), ImageOps.invert(PHOTO)]
    content = saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert b"acTL" in content
    assert np.array_equal(decoded(content), np.array(PHOTO))


WINDOWED = {
    "JPEG": PLAIN["JPEG"],
    "progressive": OPAQUE["progressive"],
    "CMYK": OPAQUE["CMYK"],
    "PNG": PLAIN["PNG"],
    "RGBA": saved(gradient("RGBA", "ramp").resize((93, 61)), "PNG"),
    "trailing": PLAIN["JPEG"] + bytes(5),
}


@pytest.mark.parametrize("kind", WINDOWED)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_window_is_that_of_the_whole(kind, orientation):
    content = with_exif(WINDOWED[kind], exif(orientation)) if orientation > 1 else WINDOWED[kind]
    image = decoded(content).astype(int)
    height, width, _ = image.shape
    for _ in range(6):
        size = random.integers(8, [height + 1, width + 1])
        top, left = random.integers(0, [height, width] - size + 1)
        crop = part(tf.constant(content), tf.constant([top, left, *size], tf.int32)).numpy()
        wanted = image[top : top + size[0], left : left + size[1]]
        assert crop.shape == wanted.shape
        # At its border a crop lacks the neighbours from which colour is interpolated.
        inner = (slice(2, -2), slice(2, -2))
        assert np.array_equal(crop[inner], wanted[inner])


def test_a_jpegs_window_is_decoded_without_the_rest():
    """As the operator gives it that reads the window only, whose border says so."""
    window = tf.constant([3, 4, 20, 16], tf.int32)
    upright = part(tf.constant(PLAIN["JPEG"]), window)
    assert np.array_equal(upright, tf.image.decode_and_crop_jpeg(PLAIN["JPEG"], window, 3))
    lying = part(tf.constant(with_exif(PLAIN["JPEG"], exif(6))), window)
    stored = [61 - 4 - 16, 3, 16, 20]  # turned to the right: columns from the right are rows
    crop = tf.image.decode_and_crop_jpeg(PLAIN["JPEG"], stored, 3)
    assert np.array_equal(lying, np.rot90(crop, -1))
    rest = decoded(PLAIN["JPEG"])[3:23, 4:20]
    assert not np.array_equal(upright, rest)  # or the test could not tell


REFUSED = {
    "an empty file": (b"", "the image is empty"),
    "GIF": (saved(PHOTO, "GIF"), "it is a GIF image, not a JPEG or PNG: convert it"),
    "BMP": (saved(PHOTO, "BMP"), "it is a BMP image"),
    "WebP": (saved(PHOTO, "WEBP"), "it is a WebP image, not a JPEG or PNG: convert it"),
    "TIFF": (saved(PHOTO, "TIFF"), "it is a TIFF image"),
    "AVIF": (saved(PHOTO, "AVIF"), "it is an AVIF image"),
    "JPEG 2000": (saved(PHOTO, "JPEG2000"), "it is a JPEG 2000 image"),
    "ICO": (saved(PHOTO, "ICO"), "it is an icon"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(99), "it is a HEIC image"),
    "JPEG XL": (b"\xff\x0a" + bytes(99), "it is a JPEG XL image"),
    "SVG": (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="x"/>', "it is an SVG drawing"),
    "HTML": (b"\n<!DOCTYPE html><html><svg/></html>", "it is an HTML page"),
    "PDF": (b"%PDF-1.7\n", "it is a PDF document"),
    "a text": (b"no image", "it is neither a JPEG nor a PNG image"),
    "PNG's first bytes": (PLAIN["PNG"][:8], "the PNG image is damaged or cut off"),
    "PNG's header": (PLAIN["PNG"][:40], "the PNG image is damaged or cut off"),
    "half a PNG": (PLAIN["PNG"][: len(PLAIN["PNG"]) // 2], "the PNG image is damaged or cut off"),
    "JPEG's first bytes": (PLAIN["JPEG"][:4], "the JPEG image is damaged or cut off"),
    "half a JPEG": (PLAIN["JPEG"][: len(PLAIN["JPEG"]) // 2], "the JPEG image is damaged or cut"),
    "a JPEG without its end": (PLAIN["JPEG"][:-2], "the JPEG image is damaged or cut off"),
    "a tenth less": (with_exif(PLAIN["JPEG"], exif(6))[:-300], "the JPEG image is damaged or cut"),
    "no pixels": (png(0, 5, 8, 2, []), "the PNG image is damaged or cut off"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_refused_everywhere(kind):
    content, reason = REFUSED[kind]
    assert decoding.image_fault(content).startswith(reason)
    images = Preprocessing(16, "imagenet", mean=(0.5,) * 3, std=(0.2,) * 3)
    seed = tf.constant([1, 2], tf.int64)
    for function in (
        preprocessing.decode, images.evaluation,
        lambda x: images.evaluation(x, 10**6), lambda x: images.training(x, seed),
    ):  # fmt: skip
        graph = tf.function(function, input_signature=[tf.TensorSpec([], tf.string)])
        for run in (function, graph):
            with pytest.raises(tf.errors.InvalidArgumentError) as raised:
                run(tf.constant(content))
            found = sentence(raised.value)
            assert found in (
                "it is neither a JPEG nor a PNG image",
                "the JPEG image is damaged or cut off",
                "the PNG image is damaged or cut off",
            )


@pytest.mark.parametrize("augmentation", ["none", "imagenet"])
@pytest.mark.parametrize("content", [PLAIN["JPEG"], PLAIN["PNG"]], ids=["JPEG", "PNG"])
def test_everyone_sees_the_same_image(content, augmentation):
    config = Images("synthetic", size=32, augmentation=augmentation, mean=(0.0,) * 3,
                    std=(1 / 255,) * 3, synthetic_examples=1)  # fmt: skip
    content = with_exif(content, exif(6))
    data = config.open("")
    upright = preprocessing.decode(tf.constant(content))
    assert upright.shape == (93, 61, 3)
    evaluated = data.preprocessing.evaluation(tf.constant(content))
    # At its border a crop lacks the neighbours from which colour is interpolated.
    border = slice(3, -3) if augmentation == "imagenet" else slice(None)
    of_array = data.preprocess_arrays(upright[tf.newaxis])[0]
    np.testing.assert_allclose(evaluated[border, border], of_array[border, border], atol=1e-3)
    served = tf.function(lambda x: data.preprocess(x, Limits()))(tf.constant([content]))
    assert np.array_equal(served[0], evaluated)
    if augmentation == "none":
        seed = tf.constant([1, 2], tf.int64)
        assert np.array_equal(data.preprocessing.training(tf.constant(content), seed), evaluated)


def test_no_walk_is_endless():
    """However many pieces a file has: what stands behind them all is not looked for."""
    pieces = chunk(b"tEXt", b"eXIf") + chunk(b"teXt", b"") * (metadata.MAX_PIECES + 10)
    content = with_exif(PLAIN["PNG"], exif(6), pieces, -1)
    assert whole(tf.constant(content))[0].shape == (61, 93, 3)


def mutated(content, generator):
    """Bytes changed, cut out, doubled or set as lengths are."""
    content = bytearray(content)
    for _ in range(generator.integers(1, 5)):
        # Headers are where it matters.
        most = len(content) if generator.random() < 0.4 else min(len(content), 400)
        at = int(generator.integers(0, max(most, 1)))
        kind = generator.integers(5)
        if kind == 0:
            content[at : at + 1] = generator.bytes(1)
        elif kind == 1:
            del content[at : at + int(generator.integers(1, 40))]
        elif kind == 2:
            content[at:at] = content[at : at + int(generator.integers(1, 60))]
        elif kind == 3:
            value = int(generator.choice([0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
            content[at : at + 4] = struct.pack(">I", value)
        else:
            del content[at:]
    return bytes(content)


def test_fuzzed_files_are_refused_by_all_or_by_none():
    """The gate says of each what the graph says, which fails in one way only."""
    generator = np.random.default_rng(int(os.environ.get("SCALEPROOF_FUZZ_SEED", "0")))
    whole_kinds = [
        *(with_exif(PLAIN[k], exif(6, o)) for k in PLAIN for o in (LARGE, SMALL)), *PLAIN.values(),
        *OPAQUE.values(), *(saved(gradient(m, "ramp"), "PNG") for m in ("RGBA", "LA")),
        *(content for content, _ in REFUSED.values()),
    ]  # fmt: skip
    spec = [tf.TensorSpec([None], tf.string)]
    sets = [Images("synthetic", 8, augmentation=a).open("") for a in ("none", "imagenet")]
    graphs = [
        tf.function(lambda x, data=data: data.preprocess(x, FUZZED), input_signature=spec)
        for data in sets
    ]
    taken = 0
    for i in range(EXAMPLES):
        content = mutated(whole_kinds[i % len(whole_kinds)], generator)
        fault = decoding.image_fault(content)
        try:
            FUZZED.check("image", content)
        except ValueError as error:
            fault = str(error)
        for graph in graphs:
            try:
                x = graph(tf.constant([content]))
            except tf.errors.InvalidArgumentError as error:
                assert fault is not None, (sentence(error), content)
                assert "{{" not in sentence(error), sentence(error)
            else:
                assert x.shape == (1, 8, 8, 3) and np.isfinite(x).all()
                # Damage below a window is not always seen: it is not what is looked at.
                assert fault is None or graph is graphs[1], (fault, content)
        taken += fault is None
    assert EXAMPLES < 100 or EXAMPLES / 20 < taken < EXAMPLES
