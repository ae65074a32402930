"""Text as it is shown: prompts beside answers, what counts, what is marked, and what was left out."""

import numpy as np
import pytest
import torch
from pages import HOSTILE, read, words

import forwardinf as fi
from forwardinf.job.options import Options, open_examples
from forwardinf.tasks.text import Seq2Seq
from forwardinf.view.marked_text import READ, Language, Words, cut, in_pieces, language_of, of_row
from forwardinf.view.pictures import picture
from forwardinf.view.report import Card, QuerySection, ReportPage, Table, render


class Tokenizer:
    """Spells ids as letters; 0 is special."""

    pad_token_id = 0

    def decode(self, ids, skip_special_tokens=False):
        return " ".join("abcdefghij"[i] for i in ids if i or not skip_special_tokens)


SPELL = Language(Tokenizer())


# -- both sides of a pair ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "Who? ", "completion": " Me."}, "Who? → Me."),
        ({"question": "Who?", "answer": "Me.", "id": 3}, "Who? → Me."),
        ({"instruction": "Sum.", "input": "a", "output": "b"}, "Sum. → b"),
        ({"source": "dog", "target": "Hund"}, "dog → Hund"),
        ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"},
                       {"role": "user", "content": "?"}]}, "user : hi\nassistant → ho\nuser : ?"),
        ({"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "ho"}]},
         "user : hi\nassistant → ho"),
        ({"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, "b → c d"),
        ({"input_ids": [1, 2, 3, 4], "labels": [-100, 2, -100, 4]}, "b → c d → e"),
        ({"input_ids": [1, 2, 3, 0, 0], "labels": [-100, 2, 3, -100, -100], "attention_mask": [1, 1, 1, 0, 0]}, "b → c d"),
        ({"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, "b c d"),
        ({"input_ids": torch.tensor([[1, 2]]), "labels": torch.tensor(1)}, "b c"),
        ({"input_ids": np.array([1, 2]), "labels": 1}, "b c"),
        ({"input_ids": [0, 1, 0]}, "b"),
        ({"input_ids": [0, 0]}, "(empty text)"),
        ({"input_ids": [1, 99]}, "ids 1 99"),  # another model's ids
        ({"input_ids": [1, 2, 3], "labels": [7, 8, 0]}, "b c d → labels 7 8 0"),  # classes of tokens, or many labels
        ({"input_ids": [1, 2], "labels": [2, 1], "text": "the text"}, "b c → labels 2 1"),
        ({"input_ids": [1, 2], "text": "the text"}, "the text"),
        ({"input_ids": [1, 2], "labels": [-100, 2], "text": "the text"}, "b → c"),
    ],
)  # fmt: skip
def test_a_row_of_text_is_shown_whole(row, told):
    assert str(picture(row, language=SPELL)) == told


def test_an_encoder_decoders_labels_are_words_too():
    row = {"input_ids": [1, 2, 0], "labels": [3, 4, -100], "attention_mask": [1, 1, 0]}
    shown = picture(row, language=Language(Tokenizer(), both=True))
    assert shown == Words((("b c → ", READ), ("d e", 0)))
    assert str(picture(row)) == "ids 1 2 → labels 3 4"
    assert str(picture(row, language=Language(both=True))) == "ids 1 2 → ids 3 4"


def test_what_counts_and_what_is_only_read_are_told_apart():
    shown = picture({"prompt": "Who?", "completion": "Me."})
    assert shown.pieces == (("Who? → ", READ), ("Me.", 0))
    shown = picture({"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, language=SPELL)
    assert [level for _, level in shown.pieces] == [READ, 0]


def test_what_is_no_row_of_text_is_left_to_others():
    assert of_row({"x": [1.5, 2.5]}, SPELL) is None
    assert of_row({"prompt": "only one side"}, SPELL) is None
    assert of_row({"messages": ["not", "a chat"]}, SPELL) is None
    assert of_row({"input_ids": []}, SPELL) is None
    assert picture(torch.tensor([1, 2, 3]), language=SPELL) == "b c d"
    assert picture((torch.tensor([1, 2]), torch.tensor(0)), language=SPELL) == "b c"


def test_the_tokenizer_is_known_from_the_data_the_collator_or_the_task():
    rows = [{"input_ids": [1, 2], "labels": [2, 1]}]

    class Collator:
        tokenizer = Tokenizer()

        def __call__(self, examples):
            return examples

    class Texts(list):
        _tokenizer = Tokenizer()

    known = [open_examples(rows, "train", fi.CausalLM(), Collator(), Options()),
             open_examples(Texts(rows), "train", fi.CausalLM(), None, Options()),
             open_examples(rows, "train", fi.SequenceClassification(Tokenizer()), None, Options())]  # fmt: skip
    for examples in known:
        assert isinstance(language_of(examples).tokenizer, Tokenizer)
        assert not language_of(examples).both
    plain = open_examples(rows, "train", Seq2Seq(), None, Options())
    assert language_of(plain) == Language(None, True)
    mine = Tokenizer()
    assert language_of(plain, mine).tokenizer is mine


# -- marks -------------------------------------------------------------------------------------------------------------


def test_marks_stand_where_they_are_and_an_arrow_before_what_counts():
    shown = in_pieces("who lives here? hal does", [(16, 19, 4), (4, 9, 2), (20, 24, 1)], [(16, 24)])
    assert shown.pieces == (("who lives here? → ", READ), ("hal", 4), (" ", 0), ("does", 1))
    assert in_pieces("hal does", [(0, 3, 3)]).pieces == (("hal", 3), (" does", 0))
    assert in_pieces("").pieces == ()
    assert in_pieces("all of it").pieces == (("all of it", 0),)
    assert str(in_pieces("a b c d", counted=[(2, 3), (6, 7)])) == "a → b c → d"


@pytest.mark.parametrize("seed", range(20))
def test_every_character_is_kept_under_its_own_level(seed):
    draw = np.random.default_rng(seed)
    text = "".join(draw.choice(list("xyz"), 40))
    cuts = sorted(draw.choice(41, 8, replace=False).tolist())
    marks = [(a, b, int(draw.integers(0, 5))) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
    counted = [(5, 15), (20, 33)] if seed % 2 else None
    want = []
    for at, letter in enumerate(text):
        inside = counted is None or any(a <= at < b for a, b in counted)
        want.append((letter, next((level for a, b, level in marks if a <= at < b), 0) if inside else READ))
    got = [
        (letter, level) for told, level in in_pieces(text, marks, counted).pieces for letter in told.replace(" → ", "")
    ]
    assert got == want


def test_a_long_text_is_cut_and_says_so():
    assert cut("short") == Words((("short", 0),))
    shown = cut("word " * 1000)
    assert str(shown).startswith("word word")
    assert str(shown).endswith("… (characters 1 to 2,000 of 5,000)")
    assert shown.pieces[-1][1] == READ
    shown = cut("x" * 3000)
    assert "x" * 2000 in str(shown)
    assert "x" * 2001 not in str(shown)


def test_what_is_shown_of_a_long_text_is_where_it_is_marked_most():
    text = "." * 5000 + "here" + "." * 5000
    shown = cut(in_pieces(text, [(10, 14, 1), (5000, 5004, 4)]), 600)
    assert ("here", 4) in shown.pieces
    assert shown.pieces[0] == ("…", READ)
    assert str(shown).endswith("… (characters 4,801 to 5,400 of 10,004)")
    assert str(cut(in_pieces(text, [(100, 104, 4)]), 600)).startswith(".")
    assert str(cut(in_pieces(text, [(10_000, 10_004, 4)]), 600)).endswith("(characters 9,405 to 10,004 of 10,004)")


# -- on a page ---------------------------------------------------------------------------------------------------------


def page(*examples):
    cards = [Card(n, n + 1, 0.5, example=example) for n, example in enumerate(examples)]
    return render(ReportPage("t", sections=[QuerySection("q", proponents=cards)]))


def test_both_sides_stand_in_the_report_the_prompt_in_grey():
    html = page(picture({"prompt": "Who?", "completion": "Me."}))
    assert '<span class="read">Who? → </span>Me.' in html
    assert "is read by the model but not counted" in words(html)
    assert "not counted" not in words(page("Me."))


def test_marked_words_stand_in_the_report():
    assert '<mark class="m4">hal</mark> does' in page(in_pieces("hal does", [(0, 3, 4)]))


def test_a_long_text_is_cut_in_the_report_and_said():
    told = words(page("word " * 1000))
    assert "(characters 1 to 2,000 of 5,000)" in told
    table = render(ReportPage("t", tables=[Table("T", ["id", "id example"], [[1, in_pieces("word " * 1000)]])]))
    assert "(characters 1 to 2,000 of 5,000)" in words(table)


def test_pairs_stand_in_tables_too():
    table = render(
        ReportPage("t", tables=[Table("T", ["id example"], [[picture({"prompt": "Who?", "completion": "Me."})]])])
    )
    assert '<span class="read">Who? → </span>Me.' in table
    assert "is read by the model but not counted" in words(table)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_pieces_stay_text(text):
    def made(told):
        shown = Words(((told, READ), (told, 0), (told, 3)))
        table = Table("T", ["x"], [[shown]])
        return render(ReportPage("t", sections=[QuerySection("q", shown, proponents=[Card(1, 1, 0.5, example=shown)])],
                                 tables=[table]))  # fmt: skip

    calm, wild = read(made("calm")), read(made(text))
    assert wild.tags == calm.tags
    assert "\x1b" not in made(text)


class Bigram(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.next = torch.nn.Embedding(10, 4), torch.nn.Linear(4, 10)

    def forward(self, input_ids):
        return self.next(self.words(input_ids))


def test_a_report_of_scores_shows_prompts_answers_and_decoded_ids(tmp_path):
    """Rows of token ids, whose tokenizer only the report is told; labels leave the prompt out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Bigram()
    rows = [{"input_ids": [1, 2, 3 + n], "labels": [-100, -100, 3 + n]} for n in range(4)]
    scores = fi.attribute(model, rows, rows[:1], task=fi.CausalLM(), progress=False, perturbation=fi.Perturbation())
    without = scores.report(tmp_path / "ids.html").read_text(encoding="utf-8")
    assert '<span class="read">ids 1 2 → </span>ids 3' in without
    told = scores.report(tmp_path / "words.html", tokenizer=Tokenizer()).read_text(encoding="utf-8")
    assert '<span class="read">b c → </span>d' in told
    found = fi.leaks(model, rows, rows[:2], task=fi.CausalLM(), k=1, progress=False)
    told = found.report(tmp_path / "leaks.html", tokenizer=Tokenizer()).read_text(encoding="utf-8")
    assert '<span class="read">b c → </span>d' in told
