"""What a model is fed and what it puts out: wrappers, keywords, the tensor that is meant, and what is no logits."""

import re
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from close import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

import forwardinf as fi
from forwardinf.tasks.outputs import (
    accepted,
    innermost,
    keywords_of,
    output_of,
    readable,
    refuse_probabilities,
    tensor_of,
)

B, C = 5, 3
X = torch.randn(B, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 2, 1, 1, 0])
FEATURES, LOGITS = torch.randn(B, 8), torch.randn(B, C)
Named = namedtuple("Named", "features out")
WithLogits = namedtuple("WithLogits", "features logits")
One = namedtuple("One", "out")


class Returns(nn.Module):
    """A model whose output is made of its features and its logits."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.o, self.form = nn.Linear(4, 8), nn.Linear(8, C), form

    def forward(self, x):
        features = torch.tanh(self.a(x))
        return self.form(features, self.o(features))


# -- the tensor that is meant ------------------------------------------------------------------------------------------

MEANT = {
    "a tensor": LOGITS,
    "a tuple of one": (LOGITS,),
    "a list of one": [LOGITS],
    "a named tuple of one": One(LOGITS),
    "logits and no loss, as nanoGPT gives them": (LOGITS, None),
    "logits and what is no tensor": (LOGITS, "state"),
    "an attribute": WithLogits(FEATURES, LOGITS),
    "a key": {"features": FEATURES, "logits": LOGITS},
}


@pytest.mark.parametrize("form", MEANT)
def test_logits_are_found_where_nothing_else_can_be_meant(form):
    assert tensor_of(MEANT[form]) is LOGITS


GUESSES = {
    "features and logits": ((FEATURES, LOGITS), "tuple (a tensor (5, 8), a tensor (5, 3))", "logits=1"),
    "a list of them": ([FEATURES, LOGITS], "list (a tensor (5, 8), a tensor (5, 3))", "logits=1"),
    "a named tuple of them": (Named(FEATURES, LOGITS), "Named (", "logits=1"),
    "logits and a recurrent state": ((LOGITS, (FEATURES, FEATURES)), "a tensor (5, 3), tuple (", "logits="),
    "features inside, logits outside": (([FEATURES, FEATURES], LOGITS), "list (", "logits=1"),
    "features alone, inside": (([LOGITS],), "tuple (list (", "logits="),
    "features alone, by another name": (
        {"last_hidden_state": FEATURES},
        "last_hidden_state: a tensor (5, 8)",
        "logits=",
    ),
    "the outputs of torchvision": ({"out": LOGITS, "aux": LOGITS}, "out: a tensor", "logits="),
    "logits that are several": ({"logits": (LOGITS, LOGITS)}, "logits: tuple", "logits="),
    "nothing": (None, "NoneType", "logits="),
    "no tensor": ((), "tuple ()", "logits="),
}


@pytest.mark.parametrize("form", GUESSES)
def test_where_a_tensor_would_have_to_be_guessed_it_is_asked_for(form):
    output, got, do = GUESSES[form]
    with pytest.raises(fi.TaskError, match=r"model output: expected a tensor or \.logits") as caught:
        tensor_of(output)
    assert got in caught.value.got
    assert do in caught.value.do


@pytest.mark.parametrize("where", [0, -1, "logits"])
def test_a_position_in_a_tensor_is_not_taken_for_a_part_of_an_output(where):
    with pytest.raises(fi.TaskError, match=f"{where!r} in it, got Tensor without it"):
        tensor_of(LOGITS, where)


def test_what_logits_names_must_be_a_tensor():
    with pytest.raises(fi.TaskError, match="expected a tensor at 0, got list"):
        tensor_of(([FEATURES], LOGITS), 0)


def test_features_beside_logits_are_refused_by_every_task_and_logits_says_which():
    model = Returns(lambda features, logits: (features, logits))
    call = {"progress": False, "perturbation": fi.Perturbation()}
    with pytest.raises(fi.TaskError, match=r"logits=1"):
        fi.attribute(model, (X, Y), (X[:2], Y[:2]), task=fi.Classification(), **call)
    with pytest.raises(fi.TaskError, match=r"output=1"):
        fi.Regression().loss(model, (X, torch.zeros(B, C)))
    with pytest.raises(fi.TaskError, match=r"logits=1"):
        fi.MultiLabel().loss(model, (X, F.one_hot(Y)))
    got = fi.attribute(model, (X, Y), (X[:2], Y[:2]), task=fi.Classification(logits=1), **call)
    plain = Returns(lambda features, logits: logits)
    want = fi.attribute(plain, (X, Y), (X[:2], Y[:2]), task=fi.Classification(), **call)
    assert_close(got.values, want.values, rtol=1e-6, why="the same function")


# -- keywords, inside every wrapper ------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w, self.o = nn.Embedding(30, 8), nn.Linear(8, C)

    def forward(self, input_ids, attention_mask=None):
        return self.o(torch.tanh(self.w(input_ids)).mean(1))


class PassesOn(nn.Module):
    """A wrapper that hands over whatever it is given."""

    def __init__(self, model):
        super().__init__()
        self.model, self.loss = model, nn.CrossEntropyLoss()

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


class PassesKeywords(PassesOn):
    def forward(self, **batch):
        return self.model(**batch)


class Picks(nn.Module):
    """A wrapper that takes out what it wants itself, by names that its one layer does not know."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **batch):
        return self.model(batch["input_ids"]) + 0 * batch["idx"][:, None]


WRAPPERS = {
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "both": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    "an average of weights": AveragedModel,
    "a wrapper of any arguments": PassesOn,
    "a wrapper of any keywords": PassesKeywords,
    "wrappers in wrappers": lambda model: torch.compile(PassesOn(PassesKeywords(model)), backend="eager"),
    "a wrapper that picks": Picks,
    "a script": torch.jit.script,
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_wrapped_model_is_fed_what_the_model_inside_takes(name):
    ids = torch.randint(0, 30, (8, 6), generator=torch.Generator().manual_seed(1))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "idx": torch.arange(8),
        "labels": torch.arange(8) % C,
    }
    model = Net()
    wrapped = WRAPPERS[name](Net())
    with torch.no_grad():
        got = fi.Classification().loss(wrapped, batch)
        assert_close(got, fi.Classification().loss(model, batch), rtol=1e-6, why="the same function")
    if name not in ("a wrapper that picks", "a script"):
        assert type(innermost(wrapped)) is Net


def test_an_error_of_the_models_own_is_not_taken_for_a_keyword_too_many():
    class Fails(nn.Module):
        def forward(self, **batch):
            raise TypeError("got an unexpected keyword argument in my own code")

    with pytest.raises(TypeError, match="my own code"):
        output_of(Fails(), {"x": X})


def test_a_mapping_is_fed_by_name_and_only_what_the_forward_takes():
    class Keyword(nn.Module):
        def forward(self, x, *, scale=1.0):
            return x * scale

    class Anything(nn.Module):
        def forward(self, **inputs):
            return torch.tensor(float(len(inputs)))

    assert accepted(Keyword.forward) == {"x", "scale"}
    assert accepted(Anything.forward) is None
    assert keywords_of(Keyword()) == {"x", "scale"}
    assert torch.equal(output_of(Keyword(), {"x": X, "scale": 2.0, "name": "a"}), 2 * X)
    assert output_of(Anything(), {"x": X, "name": "a"}) == 2


def test_a_wrapped_decoder_keeps_no_cache_and_a_wrapped_encoder_decoder_shifts_its_labels():
    tiny = pytest.importorskip("tiny")
    rows = [{"input_ids": row, "labels": row[:3]} for row in tiny.texts(3)]
    task = fi.Seq2Seq()
    batch, model = task.collate(rows), tiny.make("t5")
    seen = []
    model.register_forward_pre_hook(lambda _, args, given: seen.append(given["use_cache"]), with_kwargs=True)
    with torch.no_grad():
        want = task.loss(model, batch)
        for wrapped in (nn.DataParallel(model), PassesOn(model)):
            assert_close(task.loss(wrapped, batch), want, rtol=1e-6, why="the same function")
    assert seen == [False] * 3


def test_a_model_of_transformers_that_gives_tuples_is_asked_for_names():
    tiny = pytest.importorskip("tiny")
    rows, model = tiny.texts(3), tiny.make("t5")
    batch = fi.Seq2Seq().collate([{"input_ids": row, "labels": row} for row in rows])
    want = tiny.read(fi.Seq2Seq(), model, batch)
    model.config.return_dict = False
    model.config.output_hidden_states = True
    assert_close(tiny.read(fi.Seq2Seq(), model, batch), want, rtol=1e-6, why="the same function")


def test_logits_of_a_decoder_beside_its_state_are_found_by_logits():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.table, self.rnn, self.out = nn.Embedding(20, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 20)

        def forward(self, input_ids):
            states, last = self.rnn(self.table(input_ids))
            return self.out(states), last

    model, ids = Recurrent(), torch.randint(0, 20, (3, 5))
    with pytest.raises(fi.TaskError, match="logits="):
        fi.CausalLM().loss(model, ids)
    want = F.cross_entropy(model(ids)[0][:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten(), reduction="none")
    assert_close(fi.CausalLM(logits=0).loss(model, ids), want.view(3, 4).sum(1), rtol=1e-12, why="float64 logits")


# -- rows that no model can read ---------------------------------------------------------------------------------------


def test_a_row_masked_whole_shows_one_token_and_masked_tokens_are_the_models_own():
    class Padded(nn.Module):
        config = namedtuple("Config", "pad_token_id")(9)

    ids = torch.tensor([[5, 6, 0], [0, 0, 0], [0, 7, 8]])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 1]])
    found = readable(Padded(), {"input_ids": ids, "attention_mask": mask, "x": 1})
    assert found["input_ids"].tolist() == [[5, 6, 9], [9, 9, 9], [9, 7, 8]]
    assert found["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0], [0, 1, 1]]
    assert found["x"] == 1
    assert readable(nn.Linear(1, 1), {"input_ids": ids, "attention_mask": mask})["input_ids"] is ids
    assert ids[0, 2] == 0
    assert mask[1, 0] == 0, "the user's batch is left alone"


# -- probabilities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_probabilities_are_told_from_logits_and_said(dtype, classes):
    logits = 3 * torch.randn(8, classes, generator=torch.Generator().manual_seed(0))
    with pytest.raises(fi.TaskError, match="expected logits, got probabilities: the model ends in a softmax"):
        refuse_probabilities(logits.softmax(1).to(dtype), "here")
    refuse_probabilities(logits.to(dtype), "here")
    refuse_probabilities(logits.log_softmax(1).to(dtype), "here")


@given(st.integers(1, 9), st.integers(2, 6), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_real_logits_are_never_taken_for_probabilities(rows, classes, dtype, seed):
    draw = torch.Generator().manual_seed(seed)
    for logits in (
        torch.randn(rows, classes, generator=draw),
        torch.rand(rows, classes, generator=draw) / classes * 2,  # none negative, about 1 in all
        torch.full((rows, classes), 1 / classes),  # a model that says the same of everything
        torch.randn(1, classes, generator=draw).softmax(1).repeat(rows, 1),
        F.one_hot(torch.randint(classes, (rows,), generator=draw), classes).float(),  # a table
        torch.zeros(rows, classes),
    ):
        refuse_probabilities(logits.to(dtype), "here")


class Ends(nn.Module):
    def __init__(self, wide, end):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.end = nn.Linear(4, wide), end

    def forward(self, x):
        return self.end(self.inner(x))


def test_a_classifier_that_ends_in_a_softmax_is_refused_and_its_logarithm_is_as_good_as_logits():
    plain, soft = Ends(C, lambda z: z), Ends(C, lambda z: z.softmax(1))
    with torch.no_grad(), pytest.raises(fi.TaskError, match=re.escape("logits=lambda p: p.log()")):
        fi.Classification().loss(soft, (X, Y))
    with pytest.raises(fi.TaskError, match="ends in a softmax"):
        fi.attribute(soft, (X, Y), (X[:1], Y[:1]), task=fi.Classification(), progress=False)
    want = fi.Classification().loss(plain, (X, Y))
    got = fi.Classification(logits=lambda p: p.log()).loss(soft, (X, Y))
    assert_close(got, want, rtol=1e-5, why="float32 probabilities")
    log = Ends(C, lambda z: z.log_softmax(1))
    assert_close(fi.Classification().loss(log, (X, Y)), want, rtol=1e-5, why="float32 log-probabilities")
    as_trained = fi.Classification(logits=lambda p: p).loss(soft, (X, Y))
    assert_close(
        as_trained, F.cross_entropy(soft(X).double(), Y, reduction="none"), rtol=1e-12, why="taken as they are"
    )


@pytest.mark.parametrize("end", [torch.sigmoid, lambda z: z.sigmoid().squeeze(1), lambda z: z.sigmoid().view(-1, 1)])
def test_a_sigmoid_is_seen_in_its_gradient(end):
    model, labels = Ends(1, end), Y.clamp_max(1)
    with pytest.raises(fi.TaskError, match="ends in a sigmoid"):
        fi.Classification(binary=True).loss(model, (X, labels))
    got = fi.Classification(binary=True, logits=lambda p: p.logit()).loss(model, (X, labels))
    want = F.binary_cross_entropy_with_logits(model.inner(X).double().flatten(), labels.double(), reduction="none")
    assert_close(got, want, rtol=1e-5, why="float32 probabilities")


def test_many_labels_do_not_take_probabilities_either():
    for end in (torch.sigmoid, lambda z: z.softmax(1)):
        with pytest.raises(fi.TaskError, match="MultiLabel: expected logits, got probabilities"):
            fi.MultiLabel().loss(Ends(C, end), (X, F.one_hot(Y)))
