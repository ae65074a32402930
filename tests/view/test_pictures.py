import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from sklearn.datasets import load_digits

from forwardinf.core.errors import SettingError
from forwardinf.view.pictures import data_uri, picture

DIGIT = load_digits().images[1].astype("float32")  # 0…16


def opened(uri):
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(body)))


def pixels(image):
    return np.asarray(image)


RED = np.zeros((6, 5, 3), np.uint8)
RED[..., 0] = 255


@pytest.mark.parametrize(
    "example",
    [
        RED,
        torch.from_numpy(RED),
        torch.from_numpy(RED).permute(2, 0, 1),
        torch.from_numpy(RED).permute(2, 0, 1) / 255,
        (torch.from_numpy(RED).permute(2, 0, 1) / 127.5 - 1).to(torch.bfloat16).requires_grad_(),
        torch.from_numpy(RED).permute(2, 0, 1)[None],
        (torch.from_numpy(RED), 3),
        (17, RED, "a label"),
        {"label": 2, "image": Image.fromarray(RED)},
        {"pixel_values": torch.from_numpy(RED).permute(2, 0, 1) / 255, "labels": torch.tensor(1)},
        {"text": "red", "photo": RED},
        RED.tolist(),
    ],
    ids=range(12),
)
def test_a_red_picture_is_red_in_every_form_a_dataset_gives_it(example):
    image = picture(example)
    assert image.mode == "RGB"
    assert image.size == (5, 6)
    assert (pixels(image) == RED).all()


@pytest.mark.parametrize("example", [DIGIT, torch.from_numpy(DIGIT)[None], (DIGIT[..., None], 0), DIGIT.tolist()])
def test_one_channel_is_grey_from_its_least_value_to_its_largest(example):
    image = picture(example)
    assert image.mode == "L"
    assert pixels(image).min() == 0
    assert pixels(image).max() == 255
    assert pixels(image)[0, 3] == round(DIGIT[0, 3] / 16 * 255)


def test_values_within_0_and_1_are_not_stretched():
    assert pixels(picture(np.full((4, 4), 0.2, np.float32)))[0, 0] == 51
    assert pixels(picture(np.eye(4, dtype=bool))).max() == 255


def test_values_within_minus_1_and_1_are_not_stretched():
    assert pixels(picture(np.array([[-0.5, 0.0], [0.5, 0.2]]))).tolist() == [[64, 128], [191, 153]]


def test_whole_numbers_up_to_255_are_not_stretched():
    assert pixels(picture(torch.tensor([[0, 200], [10, 20]]))).tolist() == [[0, 200], [10, 20]]


def test_values_that_are_not_finite_do_not_spoil_the_others():
    image = picture(np.array([[np.nan, np.inf, -np.inf], [0, 5, 10]]))
    assert pixels(image).tolist() == [[0, 255, 0], [0, 128, 255]]
    assert pixels(picture(np.full((3, 3), np.nan))).max() == 0


def test_a_constant_picture_is_drawn():
    assert pixels(picture(np.full((3, 3), 7.0)))[0, 0] == 128


@pytest.mark.parametrize(
    ("example", "text"),
    [
        ("a sentence", "a sentence"),
        ("", "(empty text)"),
        (("a premise", "a hypothesis", 1), "a premise\na hypothesis"),
        ({"text": "a document", "label": 1}, "a document"),
        ({"input_ids": [3, 17, 9], "attention_mask": [1, 1, 1]}, "ids 3 17 9"),
        (
            {"input_ids": torch.arange(30)[None], "labels": torch.arange(30)},
            "ids " + " ".join(map(str, range(24))) + " …",
        ),
        ((torch.tensor([3, 17, 9]), torch.tensor(1)), "ids 3 17 9"),
        ({"question": "who?", "answer": "me"}, "who? → me"),
        ({"premise": "a", "n": 2}, "premise: a\nn: 2"),
        ((torch.tensor([0.5, -1.25]), 1), "0.500  −1.25"),
        (np.arange(10.0), "0  1.00  2.00  3.00  4.00  5.00  6.00  7.00 … (10 values)"),
        (torch.zeros(4, 8, 8) - 2, "4 × 8 × 8 float32"),
        (torch.zeros(7, 8, 9), "7 × 8 × 9 float32"),
        (torch.zeros(0, 3), "(empty: 0 × 3 float32)"),
        (b"\x00\x01", "2 bytes"),
        ((), "(empty)"),
        ({}, "(no fields)"),
        (None, "None"),
        (2.5, "2.50"),
        ([[1, 2], [3]], "[[1, 2], [3]]"),
    ],
    ids=range(20),
)
def test_what_is_no_picture_becomes_a_short_text(example, text):
    assert str(picture(example)) == text


def test_texts_are_given_whole_and_other_things_cut_with_an_ellipsis():
    assert picture({"text": "word " * 10_000}) == ("word " * 10_000).strip()  # the page cuts it, and says so
    assert len(picture({str(n): n for n in range(1000)})) <= 280


def test_a_list_that_holds_itself_ends():
    knot = []
    knot.append(knot)
    assert isinstance(picture((knot, 1)), str)


def test_the_users_own_way_to_show_takes_precedence():
    assert picture(DIGIT, show=lambda x: f"a digit of {x.size} pixels") == "a digit of 64 pixels"
    image = Image.new("RGB", (2, 2))
    assert picture("text", show=lambda _: image) is image


@pytest.mark.parametrize("show", [lambda x: x, lambda x: None, "image"])
def test_a_show_that_gives_neither_picture_nor_text_is_refused(show):
    with pytest.raises(SettingError, match=r"show: expected a .*PIL image or text"):
        picture(DIGIT, show=show)


def test_small_pictures_are_enlarged_by_a_whole_factor_with_square_pixels():
    image = opened(data_uri(picture(DIGIT)))
    assert image.size == (128, 128)
    assert (pixels(image)[::16, ::16] == pixels(picture(DIGIT))).all()
    assert len(np.unique(pixels(image)[:16, 48:64])) == 1
    assert opened(data_uri(Image.new("L", (28, 28)))).size == (112, 112)
    assert opened(data_uri(Image.new("L", (64, 20)))).size == (128, 40)
    assert opened(data_uri(Image.new("L", (28, 28)), scale=2)).size == (56, 56)


def test_large_pictures_are_reduced_and_middling_ones_kept():
    assert opened(data_uri(Image.new("RGB", (1000, 500)))).size == (256, 128)
    assert opened(data_uri(Image.new("RGB", (1000, 500)), largest=100)).size == (100, 50)
    assert opened(data_uri(Image.new("RGB", (200, 100)))).size == (200, 100)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F", "HSV", "LAB"])
def test_every_mode_of_picture_can_be_shown(mode):
    assert opened(data_uri(Image.new(mode, (3, 2)))).mode in {"L", "RGB", "RGBA"}


def test_what_the_original_file_told_besides_the_picture_stays_out():
    notes = PngImagePlugin.PngInfo()
    notes.add_text("where", "a private place")
    stream = io.BytesIO()
    Image.new("RGB", (80, 80)).save(stream, format="PNG", pnginfo=notes, dpi=(72, 72), icc_profile=b"a screen")
    assert opened(data_uri(Image.open(stream))).info == {}


def test_the_picture_itself_is_not_changed():
    image = Image.new("RGB", (1000, 500))
    image.info["kept"] = "yes"
    data_uri(image)
    assert image.size == (1000, 500)
    assert image.info == {"kept": "yes"}


def test_a_picture_without_pixels_and_a_scale_that_is_no_factor_are_refused():
    with pytest.raises(SettingError, match="at least one pixel"):
        data_uri(Image.new("L", (0, 3)))
    for scale in (0, 1.5):
        with pytest.raises(SettingError, match="a whole number"):
            data_uri(Image.new("L", (3, 3)), scale=scale)
