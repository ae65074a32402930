import copy
import inspect
import multiprocessing
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import forwardinf as fi
from forwardinf.core import errors
from forwardinf.core.errors import choose

KINDS = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, fi.Error)}
BUILTIN = {"Error": Exception, "NoiseError": RuntimeError, "MissingExtra": ImportError}
PLAIN = [kind for name, kind in KINDS.items() if name not in ("RunMismatch", "MissingExtra")]


def made(kind):
    if kind is fi.RunMismatch:
        return kind("folder", differs={"model": ("a", None), "seed": (0, 1)}, do="Choose another.")
    if kind is fi.MissingExtra:
        return kind("peft", extra="hf", need="loading an adapter")
    return kind("here", expected="this", got="that", do="Change it.")


@pytest.mark.parametrize("name", KINDS)
def test_every_error_is_ours_public_and_of_the_builtin_kind_that_fits(name):
    assert getattr(fi, name) is KINDS[name]
    assert name in fi.__all__
    assert issubclass(KINDS[name], fi.Error)
    assert issubclass(KINDS[name], BUILTIN.get(name, ValueError))
    with pytest.raises(fi.Error):
        raise made(KINDS[name])


@pytest.mark.parametrize("name", KINDS)
def test_an_error_survives_a_pickle_and_a_copy_with_its_parts(name):
    error = made(KINDS[name])
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def fail(name):
    raise made(KINDS[name])


@pytest.mark.parametrize("name", ["DataError", "RunMismatch", "MissingExtra"])
def test_an_error_crosses_from_a_worker_process(name):
    with multiprocessing.get_context("spawn").Pool(1) as pool, pytest.raises(KINDS[name]) as caught:
        pool.apply(fail, (name,))
    assert caught.value.where == made(KINDS[name]).where
    assert caught.value.do == made(KINDS[name]).do


@pytest.mark.parametrize("kind", PLAIN)
def test_a_message_says_where_expected_got_and_do(kind):
    assert str(made(kind)) == "here: expected this, got that. Change it."


def test_parts_that_are_not_there_are_left_out_of_the_message():
    assert str(fi.Error("here")) == "here."
    assert str(fi.Error("here", expected="this")) == "here: expected this."
    assert str(fi.Error("here", got="that")) == "here: got that."
    assert str(fi.Error("here", do="Go on.")) == "here. Go on."


@given(st.text(), st.text(), st.text(), st.text())
def test_all_four_parts_are_attributes_and_in_the_message(where, expected, got, do):
    error = fi.DataError(where, expected=expected, got=got, do=do)
    assert (error.where, error.expected, error.got, error.do) == (where, expected, got, do)
    assert where in str(error)
    assert expected in str(error)
    assert got in str(error)
    assert do.strip() in str(error)


def test_a_mismatch_says_what_differs_and_both_values():
    error = made(fi.RunMismatch)
    assert "model: kept 'a', now None; seed: kept 0, now 1" in str(error)
    assert error.differs["seed"] == (0, 1)
    assert isinstance(error, fi.FileError)


def test_a_missing_package_says_which_extra_brings_it():
    assert "pip install 'forwardinf[hf]'" in str(made(fi.MissingExtra))


def test_an_unknown_name_lists_the_known_ones_and_guesses_a_near_one():
    error = choose("engine", "forwrad", ("auto", "forward"))
    assert isinstance(error, fi.SettingError)
    assert str(error) == "engine: expected one of 'auto', 'forward', got 'forwrad'. Did you mean 'forward'?"
    assert choose("engine", "zzz", iter(("auto", "forward"))).do == ""


def test_the_tree_in_the_docstring_lists_every_error():
    told = errors.__doc__
    assert all(name in told for name in KINDS)
