import copy
import datetime
import decimal
import functools
import logging
import os
import re
import subprocess
import sys
import threading
import time
import types
import uuid
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import forwardinf as fi
from forwardinf.core.fingerprint import code_digest, differences, digest, model_digest, row_digest
from forwardinf.core.hasher import Unknowable

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
ARRAYS = st.builds(
    lambda values, dtype: np.asarray(values).astype(dtype),
    st.lists(st.integers(0, 100), max_size=4), st.sampled_from(["u1", "i8", "f4", "f8"]),
)  # fmt: skip
NESTED = st.recursive(
    PLAIN | ARRAYS | ARRAYS.map(torch.from_numpy),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4),
    max_leaves=12,
)


def told(value):
    """The slow obvious answer: a text in which values of equal content, and only those, read the same."""
    if isinstance(value, np.ndarray | torch.Tensor):
        array = np.asarray(value)
        return f"{type(value).__name__} {array.dtype} {array.shape} {array.tobytes().hex()}"
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(f"{key!r}: {told(part)}" for key, part in value.items())) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(told, value)) + "]"
    return f"{type(value).__name__} {value!r}"


@given(NESTED, NESTED)
@settings(max_examples=200, deadline=None)
def test_equal_content_and_only_that_has_an_equal_digest(one, other):
    assert (digest(one) == digest(other)) == (told(one) == told(other))


@given(NESTED)
@settings(max_examples=100, deadline=None)
def test_a_copy_has_the_same_digest(value):
    assert digest(value) == digest(copy.deepcopy(value))
    assert len(digest(value)) == 32
    assert int(digest(value), 16) >= 0


@given(st.dictionaries(st.text(), NESTED, min_size=2), st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_order_of_keys_does_not_count_and_that_of_lists_does(mapping, shuffle):
    keys = list(mapping)
    shuffle.shuffle(keys)
    assert digest({key: mapping[key] for key in keys}) == digest(mapping) == digest(OrderedDict(mapping))
    assert digest([1, 2]) != digest([2, 1])


PAIRS = {
    "a split text": (["ab"], ["a", "b"]),
    "a number and its text": (1, "1"),
    "whole and real": (1, 1.0),
    "true and one": (True, 1),
    "text and bytes": ("a", b"a"),
    "empty list and mapping": ([], {}),
    "none and text": (None, "None"),
    "nested and flat": ([[1], 2], [1, [2]]),
    "two zeros": (0.0, -0.0),
    "shapes": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "dtypes": (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
    "a last bit": (torch.tensor(1.0), torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))),
    "conjugates": (torch.tensor([1 + 2j]), torch.tensor([1 + 2j]).conj()),
    "dates": (datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)),
    "decimals": (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
    "fractions": (Fraction(1, 2), Fraction(1, 3)),
    "uuids": (uuid.UUID(int=1), uuid.UUID(int=2)),
    "patterns": (re.compile("a"), re.compile("a", re.IGNORECASE)),
    "paths": (Path("a"), Path("b")),
    "slices": (slice(1, 2), slice(1, 3)),
    "ranges": (range(3), range(4)),
    "images": (Image.new("L", (2, 2), 0), Image.new("L", (2, 2), 1)),
    "image modes": (Image.new("L", (2, 2), 0), Image.new("1", (2, 2), 0)),
    "numpy's generators": (np.random.default_rng(0).bit_generator, np.random.default_rng(1).bit_generator),
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_near_misses_have_different_digests(pair):
    one, other = PAIRS[pair]
    assert digest(one) != digest(other)
    assert digest(one) == digest(copy.deepcopy(one))


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float16, torch.complex64, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (3, 2)])
def test_tensors_of_any_dtype_and_shape_can_be_told(dtype, shape):
    tensor = torch.ones(shape).to(dtype)
    assert digest(tensor) == digest(tensor.clone())
    assert digest(tensor) != digest(torch.ones(shape).double())


def test_tensors_with_no_stride_to_speak_of_can_be_told():
    assert digest(torch.zeros(1).expand(1)) == digest(torch.zeros(1))
    assert digest(torch.as_strided(torch.ones(1), (1,), (0,))) == digest(torch.ones(1))
    assert digest(torch.zeros(()).expand(3)) == digest(torch.zeros(3))
    assert digest(torch.from_numpy(np.empty(0))) == digest(torch.empty(0, dtype=torch.float64))


def test_layout_gradients_and_devices_of_a_tensor_do_not_count():
    tensor = torch.arange(6.0).view(2, 3)
    assert digest(tensor) == digest(tensor.t().contiguous().t()) == digest(tensor.clone().requires_grad_())
    assert digest(np.asfortranarray(tensor.numpy())) == digest(tensor.numpy())


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:Sparse invariant checks")
@pytest.mark.parametrize("sparse", [lambda t: t.to_sparse(), lambda t: t.to_sparse_csr()])
def test_a_sparse_tensor_is_told_by_its_content(sparse):
    assert digest(sparse(torch.eye(3))) == digest(sparse(torch.eye(3)))
    assert digest(sparse(torch.eye(3))) != digest(sparse(2 * torch.eye(3)))


def test_values_that_hold_themselves_come_to_an_end():
    one, other = [1], [1]
    one.append(one)
    other.append(other)
    assert digest(one) == digest(other) != digest([1, [1]])
    mapping = {}
    mapping["self"] = mapping
    assert digest(mapping)


def test_something_nested_beyond_reason_is_unknowable_rather_than_a_crash():
    value = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(Unknowable, match="nested too deeply"):
        digest(value)


def opened(tmp_path):
    return (tmp_path / "file").open("w")


UNKNOWABLE = {
    "a lock": lambda folder: threading.Lock(),
    "a generator": lambda folder: (n for n in range(3)),
    "a thread": lambda folder: threading.Thread(),
    "a view": lambda folder: memoryview(b"a"),
    "a meta tensor": lambda folder: torch.empty(2, device="meta"),
    "a frame": lambda folder: types.SimpleNamespace(inner=threading.RLock()),
}


@pytest.mark.parametrize("what", UNKNOWABLE)
def test_what_cannot_be_told_says_what_it_is(what, tmp_path):
    with pytest.raises(Unknowable, match=r"an object of type|a meta tensor"):
        digest([1, UNKNOWABLE[what](tmp_path)])
    assert code_digest(UNKNOWABLE[what](tmp_path)) is None


def test_an_open_file_cannot_be_told(tmp_path):
    with opened(tmp_path) as handle, pytest.raises(Unknowable, match="TextIOWrapper"):
        digest(handle)


# -- objects -----------------------------------------------------------------------------------------------------------


@dataclass
class Point:
    x: float
    y: float = 0.0


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x


class Wider(Slotted):
    def __init__(self, x, y):
        super().__init__(x)
        self.y = y


Named = namedtuple("Named", "a b")


def test_objects_are_their_class_and_their_attributes():
    assert digest(Point(1.0)) == digest(Point(1.0)) != digest(Point(2.0))
    assert digest(Slotted(1)) == digest(Slotted(1)) != digest(Slotted(2))
    assert digest(Wider(1, 2)) == digest(Wider(1, 2)) != digest(Wider(0, 2))
    assert digest(types.SimpleNamespace(a=1)) != digest(types.SimpleNamespace(a=2))
    assert digest(Named(1, 2)) != digest(Named(2, 1))
    assert digest(Point(1.0)) != digest(types.SimpleNamespace(x=1.0, y=0.0))


# -- code --------------------------------------------------------------------------------------------------------------

SCALE = 1.0
LOG = logging.getLogger("tests")


def function(text, **globals_):
    """Compile a function ``f`` from text, with globals of its own."""
    space = {"__name__": "somewhere", **globals_}
    exec(compile(text, f"file{time.monotonic_ns()}", "exec"), space)
    return space["f"]


def test_the_same_code_elsewhere_has_the_same_digest():
    text = "def f(model, batch):\n    return model(batch) * 2\n"
    assert code_digest(function(text)) == code_digest(function("\n\n# moved\n" + text))


CHANGES = {
    "a constant": ("def f(m, b): return m(b) * 2", "def f(m, b): return m(b) * 3"),
    "an operation": ("def f(m, b): return m(b) * 2", "def f(m, b): return m(b) + 2"),
    "a called name": ("def f(m, b): return m.a(b)", "def f(m, b): return m.b(b)"),
    "a default": ("def f(m, b, k=1): return k", "def f(m, b, k=2): return k"),
    "a keyword default": ("def f(m, b, *, k=1): return k", "def f(m, b, *, k=2): return k"),
    "a nested function": ("def f(m, b): return [x * 2 for x in b]", "def f(m, b): return [x * 3 for x in b]"),
    "a lambda": ("f = lambda m, b: b", "f = lambda m, b: m"),
    "a decorator's function": (
        "import functools\ndef wrap(g):\n    @functools.wraps(g)\n    def inner(m, b): return g(m, b) * 2\n    return inner\n"
        "@wrap\ndef f(m, b): return b",
        "import functools\ndef wrap(g):\n    @functools.wraps(g)\n    def inner(m, b): return g(m, b) * 2\n    return inner\n"
        "@wrap\ndef f(m, b): return b + 1",
    ),
    "a function it calls": ("def g(b): return b\ndef f(m, b): return g(b)", "def g(b): return -b\ndef f(m, b): return g(b)"),
    "a function that one calls": (
        "def h(b): return b\ndef g(b): return h(b)\ndef f(m, b): return g(b)",
        "def h(b): return -b\ndef g(b): return h(b)\ndef f(m, b): return g(b)",
    ),
    "a class it uses": (
        "class G:\n    def go(self, b): return b\ndef f(m, b): return G().go(b)",
        "class G:\n    def go(self, b): return -b\ndef f(m, b): return G().go(b)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_code_changes_the_digest(change):
    one, other = CHANGES[change]
    assert code_digest(function(one)) == code_digest(function(one))
    assert code_digest(function(one)) != code_digest(function(other))


@pytest.mark.parametrize("text", [
    "def f(m, b): return b * SCALE",
    "def f(m, b): return [x * SCALE for x in b]",
    "def f(m, b):\n    def inner(): return SCALE\n    return inner()",
    "def g(): return SCALE\ndef f(m, b): return g()",
    "class G:\n    def go(self): return SCALE\ndef f(m, b): return G().go()",
])  # fmt: skip
def test_a_constant_at_module_level_counts_wherever_it_is_used(text):
    assert code_digest(function(text, SCALE=1.0)) == code_digest(function(text, SCALE=1.0))
    assert code_digest(function(text, SCALE=1.0)) != code_digest(function(text, SCALE=2.0))


def test_a_global_that_is_not_used_does_not_count():
    text = "def f(m, b): return b"
    assert code_digest(function(text, SCALE=1.0)) == code_digest(function(text, SCALE=2.0))


def closed_over(value):
    return lambda model, batch: model(batch) * value


def test_what_a_function_closes_over_counts():
    assert code_digest(closed_over(1.0)) == code_digest(closed_over(1.0))
    assert code_digest(closed_over(1.0)) != code_digest(closed_over(2.0))
    assert code_digest(closed_over(torch.ones(2))) != code_digest(closed_over(torch.zeros(2)))
    assert code_digest(closed_over(threading.Lock())) is None


def test_partials_and_methods_count_with_what_they_are_bound_to():
    assert code_digest(functools.partial(closed_over, 1)) != code_digest(functools.partial(closed_over, 2))
    assert code_digest(Point(1.0).__repr__) != code_digest(Point(2.0).__repr__)


def test_a_version_is_mixed_in():
    assert code_digest(closed_over(1.0), version=1) != code_digest(closed_over(1.0), version=2)


def test_functions_that_call_each_other_come_to_an_end():
    texts = [f"def f{n}(m, b): return " + " + ".join(f"f{k}(m, b)" for k in range(24)) for n in range(24)]
    began = time.process_time()
    found = code_digest(function("\n".join(texts) + "\ndef f(m, b): return f0(m, b)"))
    assert found is not None
    assert time.process_time() - began < 5, "each function is told once, not once for each way to reach it"


def test_a_recursive_function_can_be_told():
    text = "def f(m, b): return f(m, b - 1) if b else {}"
    assert code_digest(function(text.format(1))) == code_digest(function(text.format(1)))
    assert code_digest(function(text.format(1))) != code_digest(function(text.format(2)))


def logs_and_uses_torch(model, batch):
    LOG.info("reading")
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none") * SCALE


def test_a_function_that_logs_and_uses_torch_can_be_told():
    assert code_digest(logs_and_uses_torch) is not None


def task_class(text):
    space = {"fi": fi, "F": F, "__name__": "somewhere"}
    exec(text, space)
    return space["T"]


TASKS = {
    "its loss": (
        "class T(fi.Task):\n    def loss(self, m, b): return m(b)",
        "class T(fi.Task):\n    def loss(self, m, b): return -m(b)",
    ),
    "a constant of the class": (
        "class T(fi.Task):\n    k = 1.0\n    def loss(self, m, b): return self.k * m(b)",
        "class T(fi.Task):\n    k = 2.0\n    def loss(self, m, b): return self.k * m(b)",
    ),
    "the loss of its base class": (
        "class B(fi.Task):\n    def loss(self, m, b): return m(b)\nclass T(B):\n    unit = 'x'",
        "class B(fi.Task):\n    def loss(self, m, b): return -m(b)\nclass T(B):\n    unit = 'x'",
    ),
    "a property": (
        "class T(fi.Task):\n    @property\n    def k(self): return 1\n    def loss(self, m, b): return self.k * m(b)",
        "class T(fi.Task):\n    @property\n    def k(self): return 2\n    def loss(self, m, b): return self.k * m(b)",
    ),
    "a static method": (
        "class T(fi.Task):\n    @staticmethod\n    def k(): return 1\n    def loss(self, m, b): return self.k() * m(b)",
        "class T(fi.Task):\n    @staticmethod\n    def k(): return 2\n    def loss(self, m, b): return self.k() * m(b)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("part", TASKS)
def test_a_task_of_ones_own_counts_with(part):
    one, other = (task_class(text) for text in TASKS[part])
    assert code_digest(one()) == code_digest(task_class(TASKS[part][0])()) is not None
    assert code_digest(one()) != code_digest(other())


def test_the_settings_of_a_task_count():
    assert code_digest(fi.Classification()) == code_digest(fi.Classification())
    found = {
        code_digest(task)
        for task in (fi.Classification(), fi.Classification(label_smoothing=0.1), fi.Classification(weight=torch.ones(3)),
                     fi.Classification(inputs="x"), fi.Regression(), fi.Regression(error="huber"), fi.MultiLabel())
    }  # fmt: skip
    assert None not in found
    assert len(found) == 7


def test_a_text_task_with_a_tokenizer_can_be_told_and_using_it_changes_nothing():
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")

    def tokenizer(words):
        model = tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="?")
        made = tokenizers.Tokenizer(model)
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="?", unk_token="?")

    task = fi.SequenceClassification(tokenizer(["?", "a", "b"]), max_length=3)
    before = code_digest(task)
    assert before is not None
    assert before == code_digest(fi.SequenceClassification(tokenizer(["?", "a", "b"]), max_length=3))
    assert before != code_digest(fi.SequenceClassification(tokenizer(["?", "a", "c"]), max_length=3))
    task.collate([{"text": "a b b a", "label": 0}, {"text": "a", "label": 1}])
    assert code_digest(task) == before


# -- models ------------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self, scale=1.0, activation=F.relu):
        super().__init__()
        self.scale, self.activation = scale, activation
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Dropout(0.1), nn.Linear(4, 2))

    def forward(self, x):
        return self.scale * self.activation(self.inner(x))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Scaled()


def test_a_copy_of_a_model_has_the_same_digest(model):
    assert model_digest(model) == model_digest(copy.deepcopy(model))


@torch.no_grad()
def nudge(tensor):
    tensor.view(-1)[0] = torch.nextafter(tensor.view(-1)[0], torch.tensor(9.0))


MODEL_CHANGES = {
    "one bit of a weight": lambda model: nudge(model.inner[0].weight),
    "a bias": lambda model: nudge(model.inner[4].bias),
    "a buffer": lambda model: nudge(model.inner[2].running_mean),
    "the architecture": lambda model: setattr(model.inner, "1", nn.GELU()),
    "a variant of a layer": lambda model: setattr(model.inner, "1", nn.LeakyReLU(0.2)),
    "the dtype": lambda model: model.double(),
    "a number that the forward uses": lambda model: setattr(model, "scale", 2.0),
    "a function that the forward uses": lambda model: setattr(model, "activation", F.gelu),
    "a function of one's own": lambda model: setattr(model, "activation", lambda x: x),
    "a tensor that is no buffer": lambda model: setattr(model, "mask", torch.ones(2)),
    "a hook": lambda model: model.inner[0].register_forward_hook(lambda module, args, out: 2 * out),
    "epsilon": lambda model: setattr(model.inner[2], "eps", 0.1),
}


@pytest.mark.parametrize("change", MODEL_CHANGES)
def test_a_change_of_the_model_changes_its_digest(model, change):
    before = model_digest(model)
    MODEL_CHANGES[change](model)
    assert model_digest(model) != before


def test_training_flags_gradients_and_a_forward_pass_do_not_count(model):
    model.eval()
    before = model_digest(model)
    model(torch.randn(2, 3)).sum().backward()
    model.train().requires_grad_(False)
    assert model_digest(model) == before


def test_heads_of_attention_count_though_the_weights_are_the_same():
    torch.manual_seed(0)
    two = nn.MultiheadAttention(8, 2)
    four = nn.MultiheadAttention(8, 4)
    four.load_state_dict(two.state_dict())
    assert model_digest(two) != model_digest(four)


def test_a_model_that_holds_its_parent_or_something_unknowable_can_be_told(model):
    model.inner[0].parent = [model]
    model.lock = threading.Lock()
    model.helpers = [nn.Linear(1, 1)]
    before = model_digest(model)
    nudge(model.helpers[0].weight)
    assert model_digest(model) != before


def test_a_sparse_buffer_counts(model):
    model.register_buffer("adjacency", torch.eye(3).to_sparse())
    before = model_digest(model)
    model.adjacency = 2 * torch.eye(3).to_sparse()
    assert model_digest(model) != before


def test_a_hugging_face_model_read_back_from_its_folder_is_the_same_and_another_config_is_not(tmp_path):
    transformers = pytest.importorskip("transformers")
    shape = {
        "vocab_size": 20,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_key_value_heads": 1,
    }
    shape |= {"bos_token_id": 1, "eos_token_id": 2, "head_dim": 4}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, num_attention_heads=2))
    model.save_pretrained(tmp_path)
    assert model_digest(transformers.LlamaForCausalLM.from_pretrained(tmp_path)) == model_digest(model)
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, num_attention_heads=2, rms_norm_eps=0.1))
    other.load_state_dict(model.state_dict())
    assert model_digest(other) != model_digest(model)


def test_two_models_that_differ_in_an_attribute_do_not_share_a_baseline():
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    torch.manual_seed(0)
    one = Scaled(1.0, nn.Identity())
    other = copy.deepcopy(one)
    other.scale = 5.0
    settings_ = {"task": fi.Classification(), "progress": False}
    first = fi.attribute(one, (x, y), (x[:1], y[:1]), **settings_).baseline
    second = fi.attribute(other, (x, y), (x[:1], y[:1]), **settings_).baseline
    want = F.cross_entropy(other.eval()(x), y, reduction="none").detach()
    assert np.allclose(second, want, rtol=1e-5)
    assert not np.allclose(first, second, rtol=1e-3)


# -- speed -------------------------------------------------------------------------------------------------------------


def test_digests_are_fast_enough_not_to_matter():
    weights = nn.Linear(2048, 2048)
    model_digest(weights)
    began = time.process_time()
    model_digest(weights)
    assert time.process_time() - began < 1.0, "16 MiB at a sixtieth of the gibibyte a second that is promised"
    began = time.process_time()
    for row in range(2000):
        row_digest((torch.zeros(8), row, "text"))
    assert time.process_time() - began < 2.0, "a millisecond a row would rival a small model's forward"


def test_differences_lists_what_differs_on_either_side():
    assert differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": 4}) == {
        "b": (2, 5),
        "c": (3, None),
        "d": (None, 4),
    }
    assert differences({}, {}) == {}


@pytest.mark.whole
def test_a_hugging_face_decoder_has_the_same_digest_in_every_process():
    transformers = pytest.importorskip("transformers")
    script = (
        "import torch, transformers as t; from forwardinf.core.fingerprint import model_digest as d; torch.manual_seed(0); "
        "c = t.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10, n_positions=8, bos_token_id=0, eos_token_id=1); "
        "print(d(t.GPT2LMHeadModel(c)))"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, capture_output=True, text=True,
                         timeout=120, env={**os.environ, "PYTHONHASHSEED": "12345"})  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            n_layer=1, n_embd=8, n_head=2, vocab_size=10, n_positions=8, bos_token_id=0, eos_token_id=1
        )
        here = model_digest(transformers.GPT2LMHeadModel(config))
    assert run.stdout.split()[-1] == here


def test_another_version_of_this_library_reads_what_it_kept_anew(monkeypatch):
    """Our own classes count by their name alone: what they do may change from one version to the next."""
    before = code_digest(fi.Classification())
    monkeypatch.setattr("forwardinf.core.fingerprint.__version__", "99.0")
    assert code_digest(fi.Classification()) != before
