"""Folders of images, and batches of them."""

import errno

import numpy as np
import pytest
from PIL import Image

from pyshuffle import data, image
from pyshuffle.data import ImageFolder
from pyshuffle.errors import DataError, ImageError

PREPROCESS = image.Preprocess(resize=32, crop=32)


@pytest.fixture
def root(tmp_path):
    """Two classes, of ten and of five images, each image of one grey value: 10, 20, ... in the order of the files."""
    grey = 10
    for name, count in (("cat", 10), ("dog", 5)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("L", (40, 36), grey).save(tmp_path / name / f"{i:02}.png")
            grey += 10
    return tmp_path


def grey_of(images):
    """The grey value of each image of a batch."""
    values = images[:, 0, 0, 0] * PREPROCESS.std[0] + PREPROCESS.mean[0]
    return np.rint(values * 255).astype(int).tolist()


def test_classes_are_the_folders_in_order(root):
    (root / "notes.txt").write_text("not a class")
    (root / ".git").mkdir()
    (root / "cat" / "._00.png").write_text("what some systems leave behind")
    (root / "cat" / "notes.txt").write_text("not an image")
    folder = ImageFolder.scan(root)
    assert folder.classes == ("cat", "dog")
    assert [path.name for path in folder.files] == [f"{i:02}.png" for i in range(10)] + [f"{i:02}.png" for i in range(5)]
    assert folder.labels.tolist() == [0] * 10 + [1] * 5


def test_a_folder_is_known_by_its_names_wherever_it_lies(root, tmp_path_factory):
    moved = tmp_path_factory.mktemp("elsewhere") / "images"
    before = ImageFolder.scan(root).fingerprint()
    root.rename(moved)
    assert ImageFolder.scan(moved).fingerprint() == before
    (moved / "cat").rename(moved / "cow")
    assert ImageFolder.scan(moved).fingerprint() != before


def test_the_typical_side_is_the_short_one(root):
    assert ImageFolder.scan(root).typical_side() == 36  # of 40 x 36 pixels


def test_the_last_of_each_class_are_held_out(root):
    train, held_out = ImageFolder.scan(root).hold_out(0.2)
    assert [path.name for path in held_out.files] == ["08.png", "09.png", "04.png"]
    assert held_out.labels.tolist() == [0, 0, 1]
    assert set(train.files).isdisjoint(held_out.files)
    assert len(train) == 12


def test_at_least_one_of_each_class_is_held_out(root):
    assert len(ImageFolder.scan(root).hold_out(0.0)[1]) == 2


def test_folders_that_cannot_be_trained_on(root, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        ImageFolder.scan(tmp_path / "none")
    with pytest.raises(DataError, match="holds 0 class folders, at least 2 are needed"):
        ImageFolder.scan(root / "cat")
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds no images \(.bmp"):
        ImageFolder.scan(root)
    Image.new("L", (40, 36)).save(root / "empty" / "only.png")
    with pytest.raises(DataError, match="'empty': none of its images, 1 in all, is left"):
        ImageFolder.scan(root).hold_out(0.2)
    Image.new("L", (40, 36)).save(root / "empty" / "second.png")
    train, held_out = ImageFolder.scan(root).hold_out(0.2)
    assert [sum(path.parent.name == "empty" for path in part.files) for part in (train, held_out)] == [1, 1]


def test_an_epoch_shows_every_image_once_in_another_order(root):
    folder = ImageFolder.scan(root)
    first, second = (
        [grey for images, _ in data.training_batches(folder, PREPROCESS, 5, 0, epoch) for grey in grey_of(images)]
        for epoch in (0, 1)
    )
    assert sorted(first) == sorted(second) == list(range(10, 160, 10))
    assert first != second


def test_labels_go_with_their_images(root):
    for images, labels in data.training_batches(ImageFolder.scan(root), PREPROCESS, 5, 0, 0):
        assert [int(grey > 100) for grey in grey_of(images)] == labels.tolist()


def test_what_does_not_fill_a_batch_is_left_out(root):
    assert [len(labels) for _, labels in data.training_batches(ImageFolder.scan(root), PREPROCESS, 4, 0, 0)] == [4, 4, 4]


def test_an_epoch_can_be_entered_anywhere(root):
    """What a resumed run sees is what the killed one would have seen, to the bit, though crops are random."""
    for path in (root / "cat").iterdir():
        noise = np.random.default_rng(len(path.name)).integers(0, 256, (50, 40, 3), np.uint8)
        Image.fromarray(noise).save(path)
    folder = ImageFolder.scan(root)
    whole, rest = (list(data.training_batches(folder, PREPROCESS, 4, 7, 3, start)) for start in (0, 2))
    assert len(whole) == 3
    assert len(rest) == 1
    np.testing.assert_array_equal(whole[2][0], rest[0][0])
    np.testing.assert_array_equal(whole[2][1], rest[0][1])


def test_measuring_prepares_images_as_classify_does(root):
    folder = ImageFolder.scan(root)
    batches = list(data.measuring_batches(folder, PREPROCESS, 4))
    assert [len(labels) for _, labels in batches] == [4, 4, 4, 3]
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), folder.labels)
    for path, prepared in zip(folder.files, np.concatenate([images for images, _ in batches]), strict=True):
        np.testing.assert_array_equal(prepared, image.load(path, PREPROCESS)[0])


@pytest.mark.parametrize("least", [0.5, 0.2])
def test_random_crops_cover_a_least_part_to_all_of_the_image(least):
    """In an image that counts its columns and rows, the corner values tell what was cut out, and whether it was mirrored. Crops are
    out of square by a third at most."""
    ramp = np.zeros((200, 200, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(200), np.arange(200)[:, None]
    areas, stretches, mirrored = [], [], 0
    for seed in range(100):
        crop = np.asarray(data.random_crop(Image.fromarray(ramp), 50, np.random.default_rng(seed), least), np.int64)
        width, height = crop[25, -1, 0] - crop[25, 0, 0], crop[-1, 25, 1] - crop[0, 25, 1]
        assert height > 0
        mirrored += width < 0
        areas.append(abs(width) * height / 200**2)
        stretches.append(abs(width) / height)
    assert 0.84 * least < min(areas) < 1.1 * least
    assert 0.85 < max(areas) <= 1
    assert 0.7 < min(stretches) < 0.8 < 1.25 < max(stretches) < 1.4
    assert 35 < mirrored < 65


def test_a_damaged_image_is_left_out(root):
    """Of its batch; the others are what they would be."""
    folder = ImageFolder.scan(root)
    whole = [grey_of(images) for images, _ in data.training_batches(folder, PREPROCESS, 5, 0, 0)]
    (root / "cat" / "03.png").write_bytes(b"no image")
    batches = list(data.training_batches(folder, PREPROCESS, 5, 0, 0))
    assert [grey_of(images) for images, _ in batches] == [[grey for grey in batch if grey != 40] for batch in whole]
    assert [len(labels) for _, labels in batches] == [len(images) for images, _ in batches]


def test_a_batch_of_damaged_images_is_empty(root):
    for path in (root / "cat").iterdir():
        path.write_bytes(b"no image")
    batches = list(data.measuring_batches(ImageFolder.scan(root), PREPROCESS, 5))
    assert [(images.shape, labels.tolist()) for images, labels in batches] == [
        ((0, 32, 32, 3), []),
        ((0, 32, 32, 3), []),
        ((5, 32, 32, 3), 5 * [1]),
    ]
    for path in (root / "dog").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the images looked at can be decoded"):
        ImageFolder.scan(root).typical_side()


def test_an_image_is_decoded_once(root, tmp_path, monkeypatch):
    """Afterwards its file is not asked for; what is wrong with a file is remembered, too."""
    folder, decode = ImageFolder.scan(root), data.Decoder(tmp_path)
    folder.files[3].write_bytes(b"no image")
    pictures = {path: image.decode(path) for path in folder.files if path != folder.files[3]}
    for _ in range(2):
        for path in folder.files:
            if path in pictures:
                assert decode(path) == pictures[path]
            else:
                with pytest.raises(ImageError, match=r"03\.png: no image of a kind that is read"):
                    decode(path)
            path.unlink(missing_ok=True)
    assert list(decode.faults) == [folder.files[3]]


@pytest.mark.parametrize("limit", ["ROOM", "SPARE"])
def test_images_that_find_no_room_are_decoded_again(root, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(data, limit, 40 * 36 * 3 if limit == "ROOM" else 1 << 62)
    folder, decode = ImageFolder.scan(root), data.Decoder(tmp_path)
    for path in folder.files:
        picture = decode(path)
        path.unlink()
        if limit == "ROOM" and path == folder.files[0]:
            assert decode(path) == picture
        else:
            with pytest.raises(DataError, match="No such file"):
                decode(path)
    assert not decode.faults  # they may be sound


def test_what_the_disk_takes_in_part_is_decoded_again(root, tmp_path, monkeypatch):
    """Or not at all: a quota shows only when something is written."""
    folder, decode = ImageFolder.scan(root), data.Decoder(tmp_path)
    first, second, third = folder.files[:3]
    pictures = [decode(path) for path in (first, second, third)]
    pixels = pictures[0].tobytes()

    class Full:
        """A file that has room for an image and a half, and then for none."""

        def __init__(self):
            self.content, self.place = b"", 0

        def seek(self, place):
            self.place = place

        def read(self, count):
            return self.content[self.place :][:count]

        def write(self, more):
            if len(self.content) > self.place:
                raise OSError(errno.EDQUOT, "quota exceeded")
            fits = more[: len(pixels) * 3 // 2 - len(self.content)]
            self.content += fits
            return len(fits)

    decode = data.Decoder(tmp_path)
    decode._file = Full()
    for _ in range(2):
        assert [decode(path) for path in (first, second, third)] == pictures
    assert list(decode._places) == [first]


def test_no_file_is_left_behind_or_needed(root, tmp_path):
    decode = data.Decoder(tmp_path / "none")  # a folder that cannot be written to
    for path in ImageFolder.scan(root).files:
        assert decode(path) == image.decode(path)
    decode = data.Decoder(root)
    before = set(root.iterdir())
    decode(ImageFolder.scan(root).files[0])
    assert set(root.iterdir()) == before
