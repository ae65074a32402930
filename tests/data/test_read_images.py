import numpy as np
import pytest
import torch
from PIL import Image

from forwardinf.core.errors import DataError, FileError, SettingError
from forwardinf.data.load import load_data
from forwardinf.data.read_images import ImageFolder


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("train/cat/b.png", "train/cat/a.PNG", "train/dog/c.jpg", "train/eel/d.png", "test/dog/e.png"):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6, 4, 3), dtype=np.uint8)).save(path)
    (tmp_path / "pets/train/cat/notes.txt").write_text("no image")
    return tmp_path / "pets"


def test_an_image_folder_is_sorted_and_scaled(folder):
    data = load_data(folder)
    assert isinstance(data, ImageFolder)
    assert data.classes == ["cat", "dog", "eel"]
    assert data.ids == ["cat/a.PNG", "cat/b.png", "dog/c.jpg", "eel/d.png"]
    image, label = data[1]
    pixels = np.asarray(Image.open(folder / "train/cat/b.png"))
    assert (image.dtype, label, len(data)) == (torch.float32, 0, 4)
    assert torch.equal(image, torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255)


def test_a_class_that_a_split_lacks_keeps_its_number(folder):
    data = load_data(f"{folder}:test")
    assert data.ids == ["dog/e.png"]
    assert data[0][1] == 1


def test_a_folder_of_classes_needs_no_splits(folder):
    assert load_data(folder / "train").classes == ["cat", "dog", "eel"]
    with pytest.raises(SettingError, match="no split"):
        load_data(folder / "train", split="test")


def test_images_are_resized_normalised_and_made_grey(folder):
    image, _ = load_data(folder, image_size=(3, 5), image_mode="L", mean=0.5, std=[0.5])[0]
    assert image.shape == (1, 3, 5)
    assert image.min() >= -1
    assert load_data(folder, image_size=8, rows="::2")[1][0].shape == (3, 8, 8)
    assert load_data(folder, rows="2,0").ids == ["dog/c.jpg", "cat/a.PNG"]


@pytest.mark.parametrize("content", [b"not an image", b""])
def test_a_corrupt_image_is_named(folder, content):
    (folder / "train/cat/a.PNG").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.PNG"):
        load_data(folder)[0]


def test_a_cut_image_is_named(folder):
    path = folder / "train/cat/b.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"b\.png"):
        load_data(folder)[1]


def test_a_decompression_bomb_is_refused(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)  # Pillow only warns up to twice this; the images have 24
    with pytest.raises(DataError, match="DecompressionBomb"):
        load_data(folder)[0]


def test_images_of_sixteen_bits_are_refused(folder):
    Image.fromarray(np.full((4, 4), 60000, np.uint16)).save(folder / "train/cat/b.png")
    with pytest.raises(DataError, match="8 bits"):
        load_data(folder)[1]


@pytest.mark.parametrize("setting", [{"image_size": 0}, {"image_size": (1, 2, 3)}, {"image_mode": "rgb"}, {"scale": 2}])
def test_wrong_image_settings_are_refused(folder, setting):
    with pytest.raises(SettingError, match=next(iter(setting))):
        load_data(folder, **setting)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="none of these"):
        load_data(tmp_path / "empty")
    with pytest.raises(DataError, match="no images"):
        load_data(tmp_path)
