"""Models that nobody here would choose: scores are those of autograd, or of a plain twin, or the model is refused by name."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from close import assert_close
from torch import nn
from torch.utils.checkpoint import checkpoint

import forwardinf as fi

N = 30
RULES = {"plain": fi.Perturbation(), "default": None, "finite": "finite", "ekfac": fi.Perturbation("ekfac")}
CLOSE = "the same function: rounding, curvature fitted in other batches, lengths found by bisection"


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, Y = numbers(N, 6), torch.arange(N) % 3


def scores(model, train, queries, rule=None, **settings):
    settings = {"task": fi.Classification(), "perturbation": rule, "progress": False, **settings}
    return fi.attribute(model, train, queries, **settings)


def products(model, train, asked, loss=None):
    """Return G_q Gᵀ by autograd, one example at a time."""
    loss = loss or (lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none"))
    chosen = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for i in range(len(train[0])):
        one = loss(model.eval(), tuple(column[i : i + 1] for column in train)).sum()
        found = torch.autograd.grad(one, chosen, allow_unused=True)
        rows.append(
            torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, chosen, strict=True)])
        )
    found = torch.stack(rows).double()
    return found[asked] @ found.T


def pair(make):
    """Return two models that differ in how they are written alone: ``make(True)`` is the plain one."""
    torch.manual_seed(0)
    odd, plain = make(False), make(True)
    plain.load_state_dict(odd.state_dict())
    return odd.eval(), plain.eval()


# -- which axis the examples are ---------------------------------------------------------------------------------------


class Sequences(nn.Module):
    """A transformer over tokens; ``first``: examples first."""

    def __init__(self, first):
        super().__init__()
        self.first, self.embed = first, nn.Embedding(30, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=first)
        self.body, self.out = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.embed(tokens) if self.first else self.embed(tokens).transpose(0, 1)
        return self.out(self.body(x).mean(1 if self.first else 0))


@pytest.mark.parametrize("length", [8, 5])  # as many positions as features, and as the batch holds examples
@pytest.mark.parametrize("rule", RULES)
def test_sequences_first(rule, length):
    tokens = torch.randint(0, 30, (N, length), generator=torch.Generator().manual_seed(1))
    odd, plain = (
        model.double() for model in pair(Sequences)
    )  # eigenvectors that are nearly alike turn with each rounding
    want = scores(plain, (tokens, Y), (tokens[:3], Y[:3]), RULES[rule]).values
    for size in (1, length, "auto"):
        got = scores(odd, (tokens, Y), (tokens[:3], Y[:3]), RULES[rule], batch_size=size).values
        assert_close(got, want, rtol=5e-3, why=CLOSE)


class Learned(nn.Module):
    """Learned queries go through a layer before they meet the examples; ``plain``: repeated for each of them first."""

    def __init__(self, plain, count=5):
        super().__init__()
        self.plain, self.queries = plain, nn.Parameter(numbers(count, 8, seed=2))
        self.of_queries, self.of_x, self.out = nn.Linear(8, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        queries = self.queries.expand(len(x), -1, -1) if self.plain else self.queries
        return self.out((torch.tanh(self.of_queries(queries)) * torch.tanh(self.of_x(x))[:, None]).mean(1))


@pytest.mark.parametrize("count", [5, 15])
@pytest.mark.parametrize("rule", RULES)
def test_layers_of_something_without_examples(rule, count):
    odd, plain = pair(lambda plain: Learned(plain, count))
    want, got = (scores(model, (X, Y), (X[:3], Y[:3]), RULES[rule], batch_size=15) for model in (plain, odd))
    assert_close(got.values, want.values, rtol=5e-3, why=CLOSE)


class Graphs(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, edges, of):
        sums = torch.zeros(int(of.max()) + 1, 8).index_add(0, of, torch.relu(self.inner(edges @ x)))
        return self.out(sums / torch.bincount(of)[:, None])


def graph(seed, nodes):
    return {"x": numbers(nodes, 4, seed=seed), "edges": torch.eye(nodes) + 0.3, "labels": seed % 3}


def joined(graphs):
    of = torch.cat([torch.full((len(g["x"]),), place) for place, g in enumerate(graphs)])
    return {
        "labels": torch.tensor([g["labels"] for g in graphs]), "of": of, "x": torch.cat([g["x"] for g in graphs]),
        "edges": torch.block_diag(*[g["edges"] for g in graphs]),
    }  # fmt: skip


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.out = nn.Linear(6, 2), nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x):
        gate, found = self.gate(x).softmax(1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = gate.argmax(1) == number
            found[mine] = torch.tanh(expert(x[mine])) * gate[mine, number : number + 1]
        return self.out(found)


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.heads = nn.Linear(6, 8), nn.ModuleList(nn.Linear(8, 3) for _ in range(2))

    def forward(self, x):
        return torch.stack([self.heads[int(row[0] > 0)](torch.tanh(self.body(row))) for row in x])


class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(30, 8), nn.Linear(8, 3)

    def forward(self, tokens, offsets):
        return self.out(self.bag(tokens, offsets))


def bags(rows):
    starts = torch.tensor([0, *(len(text) for text, _ in rows[:-1])]).cumsum(0)
    return torch.cat([text for text, _ in rows]), starts, torch.tensor([label for _, label in rows])


EVEN = [graph(i, 6 + (i == 20) - (i == 21)) for i in range(N)]  # of one size but for two that make up for each other
UNEVEN = [graph(i, 3 + i % 4) for i in range(N)]
TEXTS = [(torch.arange(2 + i % 5) * 3 % 30, i % 3) for i in range(N)]
RAGGED = {
    "graphs": (Graphs, UNEVEN, joined), "graphs of nearly one size": (Graphs, EVEN, joined),
    "experts": (Experts, (X, Y), None), "heads": (Heads, (X, Y), None), "bags": (Bags, TEXTS, bags),
}  # fmt: skip


@pytest.mark.parametrize("name", RAGGED)
@pytest.mark.parametrize("rule", ["plain", "default", "finite"])
def test_ragged_batches_are_read_as_single_examples(name, rule):
    kind, train, collate = RAGGED[name]
    torch.manual_seed(0)
    model = kind()
    asked = tuple(column[:3] for column in train) if isinstance(train, tuple) else train[:3]
    settings = {"collate_fn": collate, "engine": "factored" if rule == "plain" else "auto"}
    one, more = (scores(model, train, asked, RULES[rule], batch_size=size, **settings).values for size in (1, 10))
    assert_close(more, one, rtol=5e-3, why=CLOSE)


# -- parameters that few examples use ----------------------------------------------------------------------------------


class Missing(nn.Module):
    """A learned value stands where a cell is missing."""

    def __init__(self, how):
        super().__init__()
        self.how, self.value, self.body = how, nn.Parameter(numbers(6, seed=5) * 0.3), nn.Linear(6, 8)
        self.rare, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        gone = x.isnan()
        if self.how == "where" and gone.any():
            x = torch.where(gone, self.value.expand_as(x), x)
        if self.how == "written in":
            x = x.clone()
            x[gone.any(1)] = self.value
        found = self.body(x.nan_to_num())
        if self.how == "rare branch" and gone.any():
            found = found.clone()
            found[gone.any(1)] += self.rare(x.nan_to_num()[gone.any(1)])
        return self.out(torch.tanh(found))


@pytest.mark.parametrize("how", ["where", "written in", "rare branch"])
@pytest.mark.parametrize("engine", ["factored", "forward"])
def test_parameters_that_two_examples_use(how, engine):
    torch.manual_seed(0)
    model, x = Missing(how), X.clone()
    x[[11, 23], 0] = float("nan")
    asked = [11, 23, 1, 2]
    want = products(model, (x, Y), asked)
    got = scores(model, (x, Y), (x[asked], Y[asked]), fi.Perturbation(), engine=engine, batch_size=10)
    assert_close(got.values, want, rtol=1e-5 if engine == "factored" else 5e-3, why="exact, or a difference in float32")
    assert_close(fi.self_influence(model, (x, Y), task=fi.Classification(), progress=False).values,
                 products(model, (x, Y), range(N)).diagonal(), rtol=1e-5, why="float32")  # fmt: skip


# -- losses and parameters that are differentiated otherwise -----------------------------------------------------------


def test_gradients_inside_the_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def bare(model, batch):
        x = batch[0].detach().requires_grad_(True)
        energy = model(x).squeeze(1)
        (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return (energy - batch[1]).square() + force.square().sum(1)

    def loss(model, batch):
        with torch.enable_grad():
            return bare(model, batch)

    train = X, Y.float()
    got = scores(model, train, (X[:3], train[1][:3]), fi.Perturbation(), task=loss, engine="factored")
    assert_close(got.values, products(model, train, range(3), loss), rtol=1e-5, why="float32")
    assert any("one example at a time" in note for note in got.notes)
    with pytest.raises(fi.TaskError, match=r"under torch\.enable_grad"):
        scores(model, train, (X[:3], train[1][:3]), fi.Perturbation(), task=bare)


class Mixed(nn.Module):
    def __init__(self, plain):
        super().__init__()
        self.plain, self.body = plain, nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))

    def forward(self, x):
        if self.plain:
            return self.body(x)
        with torch.autocast("cpu", torch.bfloat16):
            return self.body(x).float()


def test_mixed_precision_inside_the_forward_is_read_by_gradients():
    odd, plain = pair(Mixed)
    got, want = (scores(model, (X, Y), (X[:2], Y[:2]), fi.Perturbation()) for model in (odd, plain))
    assert got.plan["engine"] == "factored"
    assert any("by gradients" in note for note in got.notes)
    assert_close(got.values, want.values, rtol=3e-2, why="bfloat16 inside")
    forced = scores(odd, (X, Y), (X[:2], Y[:2]), fi.Perturbation(), engine="forward")
    assert "off its rate" in forced.status
    with torch.autocast("cpu", torch.bfloat16):
        around = scores(plain, (X, Y), (X[:2], Y[:2]), fi.Perturbation())
    assert_close(around.values, want.values, rtol=1e-6, why="precision around the call is switched off")


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, back):
        return -back


class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(Reversed.apply(torch.tanh(self.body(x))))


def test_losses_that_move_otherwise_than_their_gradients_say():
    torch.manual_seed(0)
    model = Turned()
    for asked in ([0, 1], [0, 1, 2, 3, 4]):
        got = scores(model, (X, Y), (X[asked], Y[asked]), fi.Perturbation())
        assert_close(got.values, products(model, (X, Y), asked), rtol=1e-5, why="float32")
    forced = scores(model, (X, Y), (X[:2], Y[:2]), fi.Perturbation(), engine="forward")
    assert "off its rate" in forced.status
    assert any("otherwise than its gradient says" in note for note in forced.notes)


class Checkpointed(nn.Module):
    def __init__(self, plain, first=False, reentrant=True):
        super().__init__()
        self.plain, self.first, self.reentrant = plain, first, reentrant
        self.enter, self.out = nn.Linear(6, 6), nn.Linear(8, 3)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x):
        x = x if self.first else torch.tanh(self.enter(x))
        run = self.body(x) if self.plain else checkpoint(self.body, x, use_reentrant=self.reentrant)
        return self.out(run)


@pytest.mark.parametrize(("first", "reentrant"), [(False, True), (True, False), (False, False)])
def test_activation_checkpoints(first, reentrant):
    from torch.utils import checkpoint as module

    before = module.CheckpointFunction.apply, module._checkpoint_without_reentrant_generator
    odd, plain = pair(lambda plain: Checkpointed(plain, first, reentrant))
    for rule in ("plain", "default", "finite"):
        got, want = (scores(model, (X, Y), (X[:3], Y[:3]), RULES[rule]).values for model in (odd, plain))
        assert_close(
            got,
            want,
            rtol=1e-3 if rule == "finite" else 1e-6,
            why="the same arithmetic; lengths are found by bisection",
        )
    assert (module.CheckpointFunction.apply, module._checkpoint_without_reentrant_generator) == before


class Tables(nn.Module):
    def __init__(self, plain):
        super().__init__()
        self.users, self.items = (nn.Embedding(20, 4, sparse=not plain) for _ in range(2))

    def forward(self, user, item):
        return (self.users(user) * self.items(item)).sum(1)


def test_sparse_tables():
    odd, plain = (model.double() for model in pair(Tables))
    train = torch.arange(N) % 20, torch.arange(N) * 7 % 20, X[:, 0]
    for rule in ("plain", "default", "finite"):
        got, want = (scores(model, train, tuple(c[:3] for c in train), RULES[rule], task=fi.Regression(), batch_size=8).values
                     for model in (odd, plain))  # fmt: skip
        why = "a short push or gradients, lengths found by bisection"
        assert_close(got, want, rtol=1e-3 if rule == "finite" else 1e-4, why=why)


def test_complex_parameters_are_refused_by_name():
    model = nn.Module()
    model.w, model.out = nn.Parameter(torch.randn(4, dtype=torch.cfloat)), nn.Linear(6, 3)
    model.forward = lambda x: model.out(torch.fft.irfft(torch.fft.rfft(x) * model.w, n=6))
    with pytest.raises(fi.ModelError, match="parameter w: expected real numbers"):
        scores(model, (X, Y), (X[:3], Y[:3]))


# -- what is around the model ------------------------------------------------------------------------------------------


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_calls_without_gradients(around):
    want = scores(small(), (X, Y), (X[:3], Y[:3]), engine="factored").values
    with around():
        got = scores(small(), (X, Y), (X[:3], Y[:3]), engine="factored").values
        inside = X.clone(), Y.clone()  # tensors of inference mode themselves
        made = scores(small(), inside, tuple(c[:3] for c in inside), engine="factored").values
    assert np.array_equal(got, want)
    assert np.array_equal(made, want)


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        model = small()
    kept = list(model.parameters())
    got = scores(model, (X, Y), (X[:3], Y[:3]))
    assert_close(got.values, scores(small(), (X, Y), (X[:3], Y[:3])).values, rtol=1e-6, why="the same weights")
    assert all(one is other for one, other in zip(model.parameters(), kept, strict=True))


def test_wrappers():
    want = scores(small(), (X, Y), (X[:3], Y[:3])).values
    for wrapped in (torch.compile(small(), backend="eager"), nn.DataParallel(small())):
        assert np.array_equal(scores(wrapped, (X, Y), (X[:3], Y[:3])).values, want)
        found = fi.self_influence(wrapped, (X, Y), task=fi.Classification(), progress=False)
        assert len(found.values) == N


class Padded(nn.Module):
    """Torch reads it by another kernel where no gradients are asked for, which leaves padding out."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Linear(1, 8), nn.Linear(8, 3)
        self.body = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 1)

    def forward(self, x):
        gone = torch.arange(6)[None] > 2 + (x[:, :1] > 0)
        return self.out(self.body(self.embed(x[..., None]), src_key_padding_mask=gone).mean(1))


def test_attention_takes_one_path_in_both_readings():
    torch.manual_seed(0)
    model = Padded()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = scores(model, (X, Y), (X[:2], Y[:2]), fi.Perturbation())
    assert got.plan["engine"] == "forward"
    assert_close(
        got.values, products(copy.deepcopy(model).train(False), (X, Y), range(2)), rtol=2e-2, why="a difference"
    )
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_loss_that_depends_on_its_company_is_refused():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(6, 3)

        def forward(self, x):
            return self.out(x - x.mean(0))

    with pytest.raises(fi.NoiseError, match="belong to the example"):
        fi.self_influence(Centred(), (X, Y), task=fi.Classification(), progress=False)
