"""Composed scenes: masks against the pixels, splits, determinism, drawings and their licences."""

import dataclasses
import pickle
import subprocess
import sys
import zlib
from importlib import resources
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from lgjax.data import drawings, masks
from lgjax.data.drawings import classes, drawing, paint
from lgjax.data.marks import picture_of
from lgjax.data.scenes import SceneConfig, compose, held_out_pair, held_out_style
from lgjax.data.schema import check
from lgjax.data.sources.scenes import Scenes
from lgjax.draw import blend_mask, phrase_colour

PLAIN = SceneConfig(backgrounds=("plain",))


def scenes(config: SceneConfig = PLAIN, count: int = 60, split="train"):
    return [compose(np.random.default_rng([5, i]), config, split) for i in range(count)]


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    for _ in range(pixels):
        padded = np.pad(mask, 1)
        mask = (
            padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        )
    return mask


def test_masks_are_what_was_drawn():
    for scene in scenes():
        pixels = np.asarray(scene.image, int)
        covered = np.sum([thing.mask for thing in scene.things], axis=0)
        assert covered.max() == 1, "each pixel shows one thing"
        ground = pixels[covered == 0]
        colours, counts = np.unique(ground, axis=0, return_counts=True)
        changed = (pixels != colours[counts.argmax()]).any(-1)
        # only the soft edge of a drawing reaches beyond its mask
        assert not (changed & ~grown(covered > 0, 2)).sum() > 0.004 * changed.size
        assert (changed & (covered > 0)).sum() > 0.98 * (covered > 0).sum()


def test_things_can_be_seen():
    hidden = 0
    for scene in scenes(SceneConfig(), 200):
        size = scene.image.width
        pixels = np.asarray(scene.image, float)
        for thing in scene.things:
            assert thing.mask.sum() > 0.0015 * size * size
            assert thing.box == tuple(masks.box_of(thing.mask))
            ring = grown(thing.mask, 3) & ~grown(thing.mask, 1)
            hidden += np.abs(pixels[thing.mask].mean(0) - pixels[ring].mean(0)).max() < 8
    assert hidden < 12


def test_some_things_hide_others():
    crowded = 0
    for scene in scenes(count=150):
        for a in scene.things:
            box = np.zeros_like(a.mask)
            x0, y0, x1, y1 = map(int, a.box)
            box[y0:y1, x0:x1] = True
            crowded += any((b.mask & box).sum() > 0.2 * b.mask.sum() for b in scene.things if b is not a)
    assert crowded > 15


def names(scene):
    return {thing.kind.slug: thing.kind for thing in scene.things}.values()


@pytest.mark.parametrize("split", ["train", "combinations", "styles"])
def test_splits_hold_out_what_they_say(split):
    for scene in scenes(PLAIN, 150, split):
        kinds = list(names(scene))
        pairs = [held_out_pair(a, b) for i, a in enumerate(kinds) for b in kinds[:i]]
        odd = [thing.style == held_out_style(thing.kind) for thing in scene.things]
        assert any(pairs) == (split == "combinations") and any(odd) == (split == "styles")
        assert len({kind.group for kind in kinds}) == len(kinds)


def test_train_scenes_hold_everything_else():
    things = [thing for scene in scenes(PLAIN, 900) for thing in scene.things]
    seen = {(thing.kind.slug, thing.style) for thing in things}
    want = {(k.slug, s) for k in classes() for s in drawings.STYLES if s != held_out_style(k)}
    assert seen <= want and len(seen) > 0.97 * len(want)
    counts = [
        len([t for t in scene.things if t.kind is kind])
        for scene in scenes(PLAIN, 300)
        for kind in names(scene)
    ]
    assert set(counts) == {1, 2, 3, 4}
    assert {len(scene.things) for scene in scenes(PLAIN, 300)} == {1, 2, 3, 4, 5, 6}


def test_a_number_is_always_the_same_scene():
    data = Scenes(seed=3, count=500)
    first = [data[i] for i in (7, 2, 7)]
    again = pickle.loads(pickle.dumps(data))[7]
    assert dataclasses.replace(first[2], image=first[0].image) == first[0] and again.turns == first[0].turns
    assert np.array_equal(np.asarray(again.image), np.asarray(first[0].image))
    assert not np.array_equal(np.asarray(first[0].image), np.asarray(first[1].image))
    assert data[-1].id == data[499].id and len(data[3:6]) == 3
    code = (
        "import zlib\nfrom lgjax.data.sources.scenes import Scenes\n"
        "r = Scenes(seed=3, count=500)[7]\nprint(zlib.crc32(r.image.tobytes()), r.objects[0].mask['counts'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.split() == [
        str(zlib.crc32(first[0].image.tobytes())),
        first[0].objects[0].mask["counts"],
    ]


def test_records_are_sound():
    for split in ("train", "combinations", "styles"):
        data = Scenes(split=split, count=40)
        for i in range(40):
            for record in data.records(i).values():
                check(record)
                assert masks.clean(record) == record
                assert record.size == record.image.size == (128, 128)


def test_scenes_have_an_end_only_where_asked():
    with pytest.raises(IndexError, match="scene 5 of 5"):
        Scenes(count=5)[5]
    for wrong in ({"sorts": ()}, {"count": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="must be at least 1, the seed 0"):
            Scenes(**wrong)
    for wrong in ({"size": 5}, {"max_things": 0}, {"styles": ()}):
        with pytest.raises(ValueError, match="cannot be composed"):
            SceneConfig(**wrong)
    with pytest.raises(ValueError, match="needs the styles noto, fluent"):
        compose(np.random.default_rng(0), SceneConfig(styles=("noto",)), "styles")


def test_a_third_style_and_own_backgrounds(tmp_path):
    art, ground = tmp_path / "art", tmp_path / "ground"
    art.mkdir(), ground.mkdir()
    for kind in classes():
        PIL.Image.new("RGBA", (40, 30), (250, 10, 10, 255)).save(art / f"{kind.slug}.png")
    PIL.Image.new("RGB", (90, 70), (0, 0, 255)).save(ground / "a.png")
    config = SceneConfig(styles=(str(art),), backgrounds=("photo",), photos=str(ground))
    scene = compose(np.random.default_rng(0), config, "combinations")
    pixels = np.asarray(scene.image)
    assert (pixels[scene.things[0].mask].mean(0) - [250, 10, 10] < 30).all() and tuple(pixels[0, 0]) == (
        0,
        0,
        255,
    )
    assert all(thing.colour is None for thing in scene.things)
    (art / "dog.png").unlink()
    drawing.cache_clear()
    with pytest.raises(ValueError, match=r"no drawing .*dog\.png"):
        drawing("dog", str(art))
    with pytest.raises(ValueError, match="for backgrounds"):
        drawings.photos(str(art / "none"))


def test_drawings_of_every_class_in_both_styles():
    assert len(classes()) >= 200
    assert len({kind.name for kind in classes()}) == len({kind.slug for kind in classes()}) == len(classes())
    for kind in classes():
        for style in drawings.STYLES:
            image = drawing(kind.slug, style)
            alpha = np.asarray(image.getchannel("A"))
            assert 24 <= max(image.size) <= 96 and (alpha > 127).mean() > 0.1
            colour = kind.colours[style]
            assert colour is None or colour.isalpha()


def hues(image) -> tuple[np.ndarray, np.ndarray]:
    """Hue in degrees of every pixel, and which are solid and saturated."""
    hsv = np.asarray(image.convert("RGB").convert("HSV"), float)
    solid = (np.asarray(image.getchannel("A")) > 127) & (hsv[..., 1] > 110)
    return hsv[..., 0] * 360 / 256, solid


def apart(a, b):
    return np.abs((a - b + 180) % 360 - 180)


def test_painted_things_have_their_colour():
    for kind in classes():
        for style in drawings.STYLES:
            if not kind.painted[style]:
                continue
            image, own = drawing(kind.slug, style), kind.colours[style]
            before, solid = hues(image)
            paintable = solid & (apart(before, drawings.HUES[own]) < 30)
            assert paintable.sum() > 0.3 * (np.asarray(image.getchannel("A")) > 127).sum(), kind.name
            for colour in drawings.PAINTS:
                after, _ = hues(paint(image, own, colour))
                assert np.median(apart(after, drawings.HUES[colour])[paintable]) < 20, (
                    kind.name,
                    style,
                    colour,
                )


def test_assets_are_small_and_licensed():
    folder = Path(str(resources.files("lgjax") / "assets"))
    assert sum(path.stat().st_size for path in folder.rglob("objects/*")) < 1.2e6
    text = (folder / "LICENCES.txt").read_text()
    for path in folder.glob("backgrounds/*/*.jpg"):
        assert f"{path.name} " in text and "Attribution 2.0" in text
    assert "Apache License" in (folder / "objects/LICENCE-noto.txt").read_text()
    assert "Microsoft" in (folder / "objects/LICENCE-fluent.txt").read_text()
    assert "UNICODE" in (folder / "objects/LICENCE-names.txt").read_text()


def test_marks_can_be_read_on_small_pictures():
    """The number of a mark changes pixels, and masks stay visible below it."""
    for i in range(20):
        record = Scenes(count=50).records(i)["marks"]
        marked, plain = np.asarray(picture_of(record), float), np.asarray(record.image, float)
        for k, number in enumerate(record.marks):
            mask = masks.decode(record.objects[number].mask, record.size)
            want = plain.copy()
            blend_mask(want, mask, phrase_colour(k), 0.1)
            same = np.abs(marked - want)[mask].max(-1) < 2
            assert 0 < same.mean() < 1 or mask.sum() < 300
