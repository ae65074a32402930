import json
import math
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import forwardinf as fi
from forwardinf.core.settings import DIRECTIONS, Perturbation, rise_target
from forwardinf.job.options import as_perturbation

POSITIVE = st.floats(1e-9, 1e3, allow_nan=False)
LENGTHS = st.one_of(
    st.just({}), st.just({"length": "linear"}), st.fixed_dictionaries({"length": st.floats(1e-9, 0.999)}),
    st.fixed_dictionaries({"lr": POSITIVE}), st.fixed_dictionaries({"rise": POSITIVE}),
    st.fixed_dictionaries({"rise": POSITIVE.map(lambda share: f"{share}x")}),
)  # fmt: skip


@st.composite
def perturbations(draw):
    chosen = draw(LENGTHS)
    finite = chosen.get("length", "linear" if not chosen else None) != "linear"
    two_sided = draw(st.sampled_from([True, False, "auto"]))
    toward = "ascent" if two_sided is True or "rise" in chosen else draw(st.sampled_from(["ascent", "descent"]))
    return Perturbation(
        draw(st.sampled_from([*DIRECTIONS])), toward=toward, two_sided=two_sided, steps=draw(st.integers(1, 9)) if finite else 1,
        parameters=draw(st.none() | st.text(min_size=1) | st.lists(st.text(), min_size=1, max_size=3)),
        seed=draw(st.integers(0, 99)), **chosen,
    )  # fmt: skip


@given(perturbations())
def test_settings_survive_a_mapping_json_and_a_pickle(setting):
    assert Perturbation.from_dict(setting.to_dict()) == setting
    again = Perturbation.from_dict(json.loads(json.dumps(setting.to_dict())))
    assert again == setting
    assert again.to_dict() == setting.to_dict()
    assert repr(again) == repr(setting)
    assert pickle.loads(pickle.dumps(setting)) == setting
    assert hash(again) == hash(setting)


def test_no_setting_means_the_linear_rate_along_the_plain_gradient():
    setting = fi.Perturbation()
    assert (setting.direction, setting.length, setting.kind, setting.both_sides, setting.signed) == (
        "plain", "linear", "linear", False, True,
    )  # fmt: skip
    assert setting == fi.Perturbation("plain") == fi.Perturbation.from_dict({})


def test_the_direction_alone_may_be_positional():
    assert fi.Perturbation("sign").direction == "sign"
    with pytest.raises(TypeError):
        fi.Perturbation("sign", 0.1)


def test_settings_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        fi.Perturbation().steps = 2


def test_whole_and_real_numbers_are_one_setting():
    assert repr(fi.Perturbation(rise=1)) == repr(fi.Perturbation(rise=1.0))
    assert repr(fi.Perturbation(lr=np.float64(0.5))) == repr(fi.Perturbation(lr=0.5))


def test_one_pattern_is_a_list_of_one():
    assert fi.Perturbation(parameters="*.weight").parameters == ("*.weight",)
    assert fi.Perturbation(parameters=["a", "b"]).parameters == ("a", "b")


@pytest.mark.parametrize("given_length", [{"length": 0.1}, {"rise": 0.5}, {"rise": "0.5x"}, {"lr": 1e-3}])
def test_every_length_but_linear_is_finite(given_length):
    assert fi.Perturbation(**given_length).kind == "finite"


REFUSED = {
    "direction misspelt": ({"direction": "plian"}, "direction=", "Did you mean 'plain'?"),
    "direction of another kind": ({"direction": 3}, "direction=", ""),
    "toward misspelt": ({"toward": "decent"}, "toward=", "Did you mean 'descent'?"),
    "behaviour misspelt": ({"behaviour": "as_publishd"}, "behaviour=", "Did you mean 'as_published'?"),
    "two lengths": ({"length": 0.1, "rise": 0.5}, "exactly one of length, rise, lr, got length and rise", "Keep one."),
    "three lengths": ({"length": 0.1, "rise": 0.5, "lr": 1.0}, "got length and rise and lr", "Keep one."),
    "linear and a rise": ({"length": "linear", "rise": 0.5}, "got length and rise", "Keep one."),
    "length a word": ({"length": "liner"}, "length=", ""),
    "length zero": ({"length": 0}, "length=", ""),
    "length one": ({"length": 1.0}, "length=", ""),
    "length negative": ({"length": -0.1}, "length=", ""),
    "length true": ({"length": True}, "length=", ""),
    "length not a number": ({"length": math.nan}, "length=", ""),
    "length a list": ({"length": [0.1]}, "length=", ""),
    "rise zero": ({"rise": 0}, "rise=", ""),
    "rise negative": ({"rise": -1.0}, "rise=", ""),
    "rise infinite": ({"rise": math.inf}, "rise=", ""),
    "rise a share without x": ({"rise": "0.5"}, "rise=", ""),
    "rise a share of nothing": ({"rise": "0x"}, "rise=", ""),
    "rise a negative share": ({"rise": "-1x"}, "rise=", ""),
    "rise an infinite share": ({"rise": "infx"}, "rise=", ""),
    "rise no share": ({"rise": "halfx"}, "rise=", ""),
    "rise an x": ({"rise": "x"}, "rise=", ""),
    "lr negative": ({"lr": -1e-3}, "lr=", ""),
    "lr text": ({"lr": "1e-3"}, "lr=", ""),
    "lr true": ({"lr": True}, "lr=", ""),
    "steps zero": ({"steps": 0, "length": 0.1}, "steps=", ""),
    "steps a fraction": ({"steps": 1.5, "length": 0.1}, "steps=", ""),
    "steps true": ({"steps": True}, "steps=", ""),
    "steps of a rate": ({"steps": 2}, "a rate has no steps", "Choose a finite"),
    "two_sided a number": ({"two_sided": 1}, "two_sided=", ""),
    "two_sided numpy's": ({"two_sided": np.True_}, "two_sided=", ""),
    "two_sided a word": ({"two_sided": "yes"}, "two_sided=", ""),
    "both sides of a descent": ({"toward": "descent", "two_sided": True, "length": 0.1}, "one-sided", "Drop one"),
    "a rise of a descent": ({"toward": "descent", "rise": 0.5}, "ascent side", "two_sided=True"),
    "no parameters": ({"parameters": ()}, "parameters=", ""),
    "parameters a number": ({"parameters": 5}, "parameters=", ""),
    "parameters numbers": ({"parameters": [1]}, "parameters=", ""),
    "published without lr": ({"behaviour": "as_published"}, "as_published", "preset('as_published')"),
    "published on both sides": ({"behaviour": "as_published", "lr": 1.0, "two_sided": True}, "one-sided", "preset"),
    "published signs": ({"behaviour": "as_published", "lr": 1.0, "direction": "sign"}, "direction='plain'", "preset"),
    "published descent": ({"behaviour": "as_published", "lr": 1.0, "toward": "descent"}, "toward='ascent'", "preset"),
    "published in steps": ({"behaviour": "as_published", "lr": 1.0, "steps": 2}, "as_published", "preset"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_out_of_range_or_out_of_place_is_refused(name):
    settings, message, do = REFUSED[name]
    with pytest.raises(fi.SettingError) as caught:
        fi.Perturbation(**settings)
    assert message in str(caught.value)
    assert do in caught.value.do
    assert caught.value.where.startswith("Perturbation(")
    assert caught.value.expected
    assert caught.value.got


def test_an_unknown_name_in_a_mapping_is_an_error_with_a_guess():
    with pytest.raises(fi.SettingError, match=r"Did you mean 'length'\?"):
        fi.Perturbation.from_dict({"lenght": 0.1})
    with pytest.raises(fi.SettingError, match="perturbation settings"):
        fi.Perturbation.from_dict({"qqq": 1})


def test_presets_are_what_they_say():
    assert fi.Perturbation.preset("linear") == fi.Perturbation("gfim", damping="auto", reading="auto")
    finite = fi.Perturbation.preset("finite")
    assert finite == fi.Perturbation("hold", reading="auto", rise=0.5, two_sided=True)
    assert (finite.kind, finite.both_sides) == ("finite", True)
    published = fi.Perturbation.preset("as_published")
    assert (published.lr, published.signed, published.kind) == (5e-3, False, "finite")
    with pytest.raises(fi.SettingError, match=r"Did you mean 'finite'\?"):
        fi.Perturbation.preset("finit")


@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_directions_name_is_a_perturbation_wherever_one_is_taken(name):
    assert as_perturbation(name) == as_perturbation({"preset": name}) == fi.Perturbation(name)
    assert as_perturbation({"preset": name, "rise": 0.5}).kind == "finite"


@pytest.mark.parametrize(("wrong", "guess"), [("ekfca", "'ekfac'"), ("finit", "'finite'"), ("", ""), (3, "")])
def test_an_unknown_name_gets_a_guess_from_presets_and_directions(wrong, guess):
    with pytest.raises(fi.SettingError) as caught:
        as_perturbation(wrong)
    assert guess in caught.value.do
    if isinstance(wrong, str):
        assert {"'linear'", "'ekfac'"} <= set(caught.value.expected.removeprefix("one of ").split(", "))


def test_a_mapping_may_start_from_a_preset_and_replace_its_length():
    base = {"preset": "finite"}
    assert fi.Perturbation.from_dict(base) == fi.Perturbation.preset("finite")
    assert fi.Perturbation.from_dict(base | {"direction": "sign"}).direction == "sign"
    longer = fi.Perturbation.from_dict(base | {"length": 0.1})
    assert (longer.length, longer.rise, longer.both_sides) == (0.1, None, True)
    with pytest.raises(fi.SettingError):
        fi.Perturbation.from_dict(base | {"length": 0.1, "rise": 1.0})
    with pytest.raises(fi.SettingError, match="'linear', 'finite'"):
        fi.Perturbation.from_dict({"preset": "best"})


def test_a_rise_is_a_number_or_a_share_of_the_loss():
    assert rise_target(0.5, loss=4.0) == 0.5
    assert rise_target("0.5x", loss=4.0) == 2.0
