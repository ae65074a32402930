"""Draw docs/demo.png, the picture of the README, from the demonstration itself: `make docs`.

Each row: a test digit that the model gets wrong, and the training digits that support the mistake, strongest first. A
training digit whose label had been flipped has a coloured frame.
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from forwardinf.use.demo import Demo, demonstrate, describe
from forwardinf.view.pictures import picture

PICTURE = Path(__file__).with_name("demo.png")
BESIDE = 8  # training digits in a row
SIDE, GAP, LEFT, TOP, FOOT = 104, 18, 30, 64, 30  # pixels
ASKED = 2 * GAP  # further room after the test digit
INK, SOFT, PAPER, FLIPPED, PLAIN = "#1b1d1f", "#62676c", "#fdfdfc", "#d55e00", "#d8d8d4"


def draw(found: Demo) -> Image.Image:
    """Return the picture."""
    scores, wrong = found.scores, found.queries[found.queries["kind"] == "wrong"]
    width = 2 * LEFT + (SIDE + GAP) * (BESIDE + 1) - GAP + ASKED
    sheet = Image.new("RGB", (width, TOP + len(wrong) * (SIDE + FOOT + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    head, small = ImageFont.load_default(19), ImageFont.load_default(15)
    pen.text((LEFT, 20), "test digit", INK, head)
    pen.text((_left(1), 20), "the training digits that made the model say so, strongest first", INK, head)
    key = "label flipped"
    pen.text((width - LEFT - pen.textlength(key, small), 23), key, FLIPPED, small)
    for line, asked in enumerate(wrong.to_dict("records")):
        top = TOP + line * (SIDE + FOOT + GAP)
        test = int(str(asked["query"]).split()[1])
        _digit(sheet, found.planted.test[0][test], _left(0), top, PLAIN)
        _told(pen, f"{asked['label']}, model says {asked['predicted']}", _left(0), top, INK, small)
        for place, row in enumerate(scores.top(BESIDE, query=asked["query"])["train"], start=1):
            flipped = row in found.planted.flipped
            _digit(sheet, found.planted.train[0][row], _left(place), top, FLIPPED if flipped else PLAIN)
            _told(pen, describe(found.planted, row), _left(place), top, FLIPPED if flipped else SOFT, small)
    return sheet


def _left(place: int) -> int:
    return LEFT + place * (SIDE + GAP) + (ASKED if place else 0)


def _digit(sheet: Image.Image, pixels: object, left: int, top: int, frame: str) -> None:
    drawn = picture(pixels)
    assert isinstance(drawn, Image.Image)
    sheet.paste(drawn.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, top))
    around = (left - 4, top - 4, left + SIDE + 3, top + SIDE + 3)
    ImageDraw.Draw(sheet).rectangle(around, outline=frame, width=4 if frame == FLIPPED else 1)


def _told(pen: ImageDraw.ImageDraw, text: str, left: int, top: int, ink: str, font: object) -> None:
    middle = left + SIDE / 2 - pen.textlength(text, font) / 2
    pen.text((middle, top + SIDE + 9), text, ink, font)


if __name__ == "__main__":
    draw(demonstrate(progress_bar=False)).quantize(64).save(PICTURE, optimize=True)
