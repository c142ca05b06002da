"""Loading, the two views, coordinates and masks, against PIL, torch and arithmetic in float64."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgjax.data import images

sides = st.integers(1, 90)
sizes = st.tuples(sides, sides)


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(kind: str, image: PIL.Image.Image | None = None, **options: object) -> bytes:
    out = io.BytesIO()
    (image or PIL.Image.fromarray(picture(13, 7))).save(out, kind, **options)
    return out.getvalue()


def test_three_kinds_of_source_are_one_picture(tmp_path: Path) -> None:
    pixels = picture(13, 7)
    file = tmp_path / "a.png"
    file.write_bytes(encoded("PNG"))
    for source in (pixels, PIL.Image.fromarray(pixels), file, str(file)):
        found = images.load_image(source)
        assert found.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(found), pixels)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: x.swapaxes(0, 1)[:, ::-1]),
        (7, lambda x: x[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda x: x.swapaxes(0, 1)[::-1]),
        (9, lambda x: x),
    ],
)
def test_exif_rotation(tmp_path: Path, orientation: int, turn) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "a.png"
    file.write_bytes(encoded("PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(images.load_image(file)), turn(picture(13, 7)))
    assert images.image_size(file) == images.load_image(file).size


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"))
    assert images.load_image(tmp_path / "a.jpg").size == (13, 7)
    assert images.image_size(tmp_path / "a.jpg") == (13, 7)


def test_size_of_what_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not there"):
        images.image_size(tmp_path / "a.jpg")
    for content in (b"", encoded("JPEG")[:20], huge_png()):
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(ValueError, match=r"is not a picture|is damaged or truncated|is too large"):
            images.image_size(tmp_path / "a.jpg")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode: str) -> None:
    source = PIL.Image.fromarray(picture(9, 5)).convert(mode)
    found = images.load_image(source)
    assert (found.mode, found.size) == ("RGB", (9, 5))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(source.convert("RGB")))


def test_deep_grey_is_scaled() -> None:
    deep = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
    found = np.asarray(images.load_image(PIL.Image.fromarray(deep)))
    np.testing.assert_array_equal(found, np.repeat((deep // 256)[..., None], 3, 2))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_pixels_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"32-bit pixels \\(mode {mode}\\)"):
        images.load_image(PIL.Image.new(mode, (3, 3)))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
)
def test_wrong_arrays(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 \[height, width, 3\]") as caught:
        images.load_image(array)
    assert f"found {array.dtype} {list(array.shape)}" in str(caught.value)


def huge_png() -> bytes:
    """A small file that claims 60000 x 60000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b""), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"\(0 bytes\) is not a picture"),
        (b"<html>404</html>", "is not a picture that PIL can read"),
        (encoded("JPEG")[:200], "is damaged or truncated"),
        (encoded("JPEG")[:-40], "is damaged or truncated"),
        (encoded("PNG")[:-40], "is damaged or truncated"),
        (encoded("GIF")[:-60], "is damaged or truncated"),
        (huge_png(), "is too large"),
    ],
    ids=["empty", "html", "jpeg header", "jpeg", "png", "gif", "huge"],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.jpg"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        images.load_image(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jpg' is not there"):
        images.load_image(tmp_path / "none.jpg")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        images.load_image(tmp_path)


def test_image_without_pixels() -> None:
    with pytest.raises(ValueError, match="has no pixels"):
        images.load_image(PIL.Image.new("RGB", (0, 5)))


@settings(deadline=None)
@given(sizes, st.integers(1, 40))
def test_clip_view_is_the_centre(size: tuple[int, int], side: int) -> None:
    """A picture that is constant along its long axis shows that constant line, whatever the crop."""
    width, height = size
    line = np.random.default_rng(width).integers(0, 256, (min(size), 1, 3), np.uint8)
    pixels = np.broadcast_to(line, (min(size), max(size), 3))
    pixels = pixels if width >= height else pixels.swapaxes(0, 1)
    found = images.clip_preprocess(PIL.Image.fromarray(np.ascontiguousarray(pixels)), side)
    assert found.shape == (side, side, 3)
    assert found.dtype == np.float32
    found = found if width >= height else found.swapaxes(0, 1)
    np.testing.assert_array_equal(found, np.broadcast_to(found[:, :1], found.shape))
    shown = PIL.Image.fromarray(line).resize((1, side), PIL.Image.Resampling.BICUBIC)
    wanted = (np.asarray(shown, np.float64) / 255 - images.CLIP_MEAN) / images.CLIP_STD
    np.testing.assert_allclose(found[:, :1], wanted, atol=2e-6)


def test_clip_view_crops_evenly() -> None:
    ramp = np.zeros((10, 31, 3), np.uint8)
    ramp[..., 0] = np.arange(31)
    found = images.clip_preprocess(PIL.Image.fromarray(ramp), 10)
    red = np.rint((found[..., 0] * images.CLIP_STD[0] + images.CLIP_MEAN[0]) * 255)
    np.testing.assert_array_equal(red, np.broadcast_to(np.arange(10, 20), (10, 10)))


@settings(deadline=None)
@given(sizes, st.sampled_from([32, 64, 65]))
def test_canvas(size: tuple[int, int], side: int) -> None:
    image = PIL.Image.fromarray(picture(*size))
    pixels, placement = images.square_canvas(image, side)
    width, height = placement.scaled
    assert placement == (size, (width, height), side)
    assert max(width, height) == side
    exact = [v * side / max(size) for v in size]
    for got, wanted in zip(placement.scaled, exact, strict=True):
        assert got == 1 or abs(got - wanted) <= 0.5 + 1e-9
    resized = np.asarray(image.resize((width, height), PIL.Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pixels[:height, :width], resized)
    assert (pixels[height:] == 128).all()
    assert (pixels[:, width:] == 128).all()


@pytest.mark.parametrize(
    ("size", "scaled"),
    [
        ((640, 480), (1024, 768)),
        ((2048, 2001), (1024, 1000)),  # 1000.5 goes to the even side
        ((2048, 2003), (1024, 1002)),  # 1001.5 as well
        ((100, 50), (1024, 512)),
        ((5000, 1), (1024, 1)),
    ],
)
def test_canvas_rounding(size: tuple[int, int], scaled: tuple[int, int]) -> None:
    assert images.place_on_canvas(size).scaled == scaled
    assert images.place_on_canvas(size[::-1]).scaled == scaled[::-1]


@given(sizes)
def test_boxes_of_the_canvas_in_pixels(size: tuple[int, int]) -> None:
    boxes = np.random.default_rng(size).random((5, 4), np.float32)
    pixels = images.canvas_to_pixels(boxes, size)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, boxes.astype(np.float64) * max(size), rtol=1e-6)


def test_box_around_a_painted_patch() -> None:
    """A patch painted on the picture and found on the canvas comes back at its pixels."""
    pixels = np.zeros((30, 60, 3), np.uint8)
    pixels[6:12, 21:45] = 255
    canvas, _ = images.square_canvas(PIL.Image.fromarray(pixels), 240)
    rows, columns = np.nonzero(canvas[:120, :, 0] > 127)
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 240
    found = images.canvas_to_pixels(box, (60, 30))
    np.testing.assert_allclose(found, [21, 6, 45, 12], atol=0.3)


def test_prompts() -> None:
    click = images.prompt_from_click(100, 50, (640, 480))
    assert click.dtype == np.float32
    np.testing.assert_allclose(click, [100 / 640, 50 / 640, 0.006, 0.006], rtol=1e-7)
    box = images.prompt_from_box(10, 20, 109, 219, (300, 400))
    np.testing.assert_allclose(box, [59.5 / 400, 119.5 / 400, 99 / 400, 199 / 400], rtol=1e-6)
    np.testing.assert_array_equal(images.prompt_from_box(109, 20, 10, 219, (300, 400)), box)
    np.testing.assert_array_equal(images.prompt_from_box(109, 219, 10, 20, (300, 400)), box)


@pytest.mark.parametrize(
    "point", [(-1, 5), (640, 5), (5, 480), (5, -0.5), (float("nan"), 5), (5, float("inf"))]
)
def test_points_outside_are_refused(point: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"lies outside the picture \(640 x 480 pixels\)"):
        images.prompt_from_click(*point, (640, 480))
    with pytest.raises(ValueError, match="lies outside the picture"):
        images.prompt_from_box(3, 4, *point, (640, 480))


@settings(deadline=None)
@given(st.tuples(st.integers(1, 700), st.integers(1, 700)), st.sampled_from([8, 25, 64]))
def test_masks_as_torch_resizes_them(size: tuple[int, int], cells: int) -> None:
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(size).normal(size=(2, cells, cells)).astype(np.float32)
    logits[0, 0] = 0
    found = images.restore_mask(logits, size)
    square = torch.nn.functional.interpolate(
        torch.from_numpy((logits > 0).astype(np.float32))[None], size=(max(size),) * 2, mode="nearest"
    )[0]
    wanted = square[:, : size[1], : size[0]].numpy() > 0.5
    assert found.dtype == bool
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(images.restore_mask(logits[1], size), wanted[1])


def test_a_mask_drawn_on_the_picture_comes_back() -> None:
    """Cells that cover whole pixels return exactly the pixels they cover."""
    truth = np.zeros((24, 40), bool)
    truth[4:12, 8:32] = True
    logits = np.full((20, 20), -1.0)
    logits[:12][truth[::2, ::2]] = 1
    np.testing.assert_array_equal(images.restore_mask(logits, (40, 24)), truth)
