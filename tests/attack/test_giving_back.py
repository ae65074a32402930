"""The model is given back bit for bit, whatever comes between: interrupts, signals, forwards that write, layers that fold."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from close import assert_close
from torch import nn

import forwardinf as fi
from forwardinf.core.uninterrupted import Lending
from forwardinf.models.borrowed import borrowed, sums
from forwardinf.perturb.swap import lend

ALL = os.environ.get("FORWARDINF_ALL_ATTACKS") == "1"


class Came(BaseException):
    """What a signal's handler raises."""


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))


def rows(count=24):
    torch.manual_seed(1)
    return torch.randn(count, 6), torch.arange(count) % 3


def state(model):
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return tensors, [module.training for module in model.modules()], [p.requires_grad for p in model.parameters()]


def assert_as_before(model, before):
    now = state(model)
    assert list(now[0]) == list(before[0])
    assert [name for name in now[0] if not torch.equal(now[0][name], before[0][name])] == []
    assert now[1:] == before[1:]


def attribute(model, **given):
    x, y = rows()
    rule = given.pop("perturbation", fi.Perturbation("plain", length=0.05, two_sided=True))
    return fi.attribute(model, (x, y), (x[:2], y[:2]), task=fi.Classification(), perturbation=rule, cache_dir="off",
                        progress=False, **{"batch_size": 8, **given})  # fmt: skip


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, torch.OutOfMemoryError])
@pytest.mark.parametrize("of", ["copy_", "clone"])
def test_an_error_at_any_copy_leaves_the_model_as_it_was(monkeypatch, error, of):
    real, count = getattr(torch.Tensor, of), [0, 0]

    def counted(self, *given, **named):
        count[0] += 1
        if count[0] == count[1]:
            raise error("injected")
        return real(self, *given, **named)

    for at in range(1, 120, 1 if ALL else 9):
        model = net()
        before = state(model)
        count[:] = 0, at
        monkeypatch.setattr(torch.Tensor, of, counted)
        try:
            attribute(model)
        except (error, fi.Error, RuntimeError):
            pass
        finally:
            monkeypatch.setattr(torch.Tensor, of, real)
        assert_as_before(model, before)


@pytest.fixture
def alarms():
    """A handler that raises, as Ctrl-C's does."""

    def handler(number, frame):
        raise Came

    kept = signal.signal(signal.SIGALRM, handler)
    yield handler
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, kept)


def test_a_signal_at_any_moment_leaves_the_model_as_it_was(alarms):
    model = net()
    before = state(model)
    attribute(model)  # a first call is slower than those that are interrupted
    began = time.perf_counter()
    attribute(model)
    whole, rng, came = time.perf_counter() - began, random.Random(0), 0
    for _ in range(300 if ALL else 40):
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, whole))
            attribute(model)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Came:
            came += 1
        assert_as_before(model, before)
        assert signal.getsignal(signal.SIGALRM) is alarms
    assert came > 10


def test_a_signal_while_weights_are_exchanged_waits_until_that_is_done(alarms):
    live, seen = {"weight": torch.zeros(4)}, []

    class Watched(Lending[None]):
        def take(self):
            signal.raise_signal(signal.SIGALRM)
            seen.append("taken")

        def give_back(self, failed):
            signal.raise_signal(signal.SIGALRM)
            seen.append("given back")

    with pytest.raises(Came), Watched():
        seen.append("inside")
    assert seen == ["taken", "given back"], "it came on entry: the block is not begun"

    def block():
        with lend(live, {"weight": torch.ones(4)}):
            signal.raise_signal(signal.SIGALRM)  # inside the block it comes at once
            seen.append("never")

    with pytest.raises(Came):
        block()
    assert live["weight"].sum() == 0
    assert "never" not in seen


def test_a_handler_that_only_listens_does_not_stop_the_block(alarms):
    heard = []
    signal.signal(signal.SIGALRM, lambda number, frame: heard.append(number))

    class Watched(Lending[str]):
        entries = 0

        def take(self):
            self.entries += 1
            if self.entries == 1:
                signal.raise_signal(signal.SIGALRM)
            return "lent"

        def give_back(self, failed):
            pass

    with Watched() as got:
        assert got == "lent"
    assert heard == [signal.SIGALRM]


def test_ctrl_c_in_a_process_of_its_own_reaches_the_caller_with_the_model_as_it_was(tmp_path):
    script = tmp_path / "victim.py"
    script.write_text(
        "import os, signal, threading, time, torch, forwardinf as fi\n"
        "from torch import nn\n"
        "torch.manual_seed(0)\n"
        "model = nn.Sequential(nn.Linear(64, 2048), nn.Tanh(), nn.Linear(2048, 3))\n"
        "x, y = torch.randn(400, 64), torch.arange(400) % 3\n"
        "before = [p.clone() for p in model.parameters()]\n"
        "call = lambda n: fi.attribute(model, (x, y), (x[:n], y[:n]), task=fi.Classification(), progress=False,\n"
        "    cache_dir='off', perturbation=fi.Perturbation('plain', length=.05, two_sided=True), engine='forward')\n"
        "call(1)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whoever runs tests in the background ignores it
        "came = 0\n"
        "for wait in (.02, .05, .11, .23, .31):\n"
        "    threading.Timer(wait, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "    try:\n"
        "        call(60)\n"
        "    except KeyboardInterrupt:\n"
        "        came += all(torch.equal(a, b) for a, b in zip(before, model.parameters()))\n"
        "print('came', came)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(Path(fi.__file__).parents[1])})  # fmt: skip
    assert done.stdout.strip() == "came 5", done.stdout + done.stderr


# Forwards that write


class Clamped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        self.o.weight.data.clamp_(min=0)
        return self.o(torch.tanh(self.a(x)))


class Replaced(Clamped):
    def forward(self, x):
        self.o.weight = nn.Parameter(self.o.weight.detach() * 0.9)
        return self.o(torch.tanh(self.a(x)))


class Later(Clamped):
    calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 4:
            self.o.bias.data.add_(1)
        return self.o(torch.tanh(self.a(x)))


class Counting(Clamped):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return self.o(torch.tanh(self.a(x)))


@pytest.mark.parametrize("kind", [Clamped, Replaced, Counting])
def test_a_forward_that_writes_is_refused_and_what_it_wrote_is_put_back(kind):
    model = kind()
    before, own = state(model), list(model.parameters())
    with pytest.raises(fi.ModelError, match=r"put back|same again"):
        attribute(model)
    assert_as_before(model, before)
    assert all(one is other for one, other in zip(own, model.parameters(), strict=True))


def test_a_forward_that_writes_later_is_noticed():
    with pytest.raises(fi.Error, match=r"load the weights again|differ"):
        attribute(Later())


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_lookups_that_shorten_rows_are_refused_by_name(kind):
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.o = kind(20, 8, max_norm=1.0), nn.Linear(8, 3)

        def forward(self, ids):
            found = self.table(ids)
            return self.o(found.mean(1) if found.ndim == 3 else found)

    model, ids = Bag(), torch.randint(0, 20, (24, 4))
    before = state(model)
    with pytest.raises(fi.ModelError, match=r"table\.max_norm"):
        fi.attribute(
            model, (ids, torch.arange(24) % 3), (ids[:2], torch.arange(2)), task=fi.Classification(), progress=False
        )
    assert_as_before(model, before)


class Folding(nn.Linear):
    """Folds a low-rank part into its weight in eval mode, as loralib does; taking it out again does not round alike."""

    def __init__(self):
        super().__init__(6, 3)
        self.down, self.up, self.merged = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(3, 2)), False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (self.up @ self.down).data * (-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, x):
        return super().forward(x) + (0 if self.merged else x @ (self.up @ self.down).T)


class Deploying(nn.Module):
    """Puts one matrix in the place of two in eval mode, and has no way back."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 3), nn.Linear(6, 3)

    def train(self, mode=True):
        super().train(mode)
        if not mode and hasattr(self, "one"):
            whole = nn.Linear(6, 3)
            whole.load_state_dict(
                {name: (t + self.two.state_dict()[name]) for name, t in self.one.state_dict().items()}
            )
            self.whole = whole
            del self.one, self.two
        return self

    def forward(self, x):
        return self.whole(x) if hasattr(self, "whole") else self.one(x) + self.two(x)


@pytest.mark.parametrize("kind", [Folding, Deploying])
@pytest.mark.parametrize("fails", [False, True])
def test_layers_that_fold_their_weights_are_given_back_unfolded(kind, fails):
    torch.manual_seed(0)
    model = kind().train()
    before, x = state(model), torch.randn(5, 6)
    output = model(x)
    try:
        attribute(model, **({"perturbation": "nonsense"} if fails else {}))
    except fi.Error:
        assert fails
    assert_as_before(model, before)
    assert torch.equal(model(x), output)
    assert getattr(model, "merged", False) is False


# Threads


def test_two_threads_on_one_model_wait_for_one_another():
    model = net()
    before, want, found = state(model), attribute(model).values, []
    threads = [threading.Thread(target=lambda: found.append(attribute(model).values)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for one in found:  # a thread of its own may add up with other threads
        assert_close(torch.as_tensor(one), torch.as_tensor(want), rtol=1e-4, why="the same readings")
    assert_as_before(model, before)


def test_a_loan_within_a_loan_is_given_back_by_the_outer_one():
    model = net().train()
    with borrowed(model), borrowed(model) as inner:
        assert not inner.training
    assert model.training


# Random state


@pytest.mark.whole
def test_the_first_call_of_a_process_gives_pythons_random_state_back():
    script = (
        "import random, numpy as np, torch\n"
        "random.seed(0); np.random.seed(0); torch.manual_seed(0)\n"
        "m, x, y = torch.nn.Linear(2, 2), torch.randn(8, 2), torch.arange(8) % 2\n"
        "s = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()\n"
        "import forwardinf as fi\n"
        "fi.attribute(m, (x, y), (x[:2], y[:2]), task=fi.Classification(), progress=False, cache_dir='off').top(1)\n"
        "assert s == (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist())\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120,
                   env={**os.environ, "PYTHONPATH": str(Path(fi.__file__).parents[1])})  # fmt: skip


# The sums


def test_the_sums_notice_what_a_copy_that_stopped_would_leave():
    model = nn.ModuleList(
        [nn.Linear(7, 5), nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last), nn.Linear(3, 1).half()]
    )
    model.append(nn.Linear(7, 5))
    model[3].weight = model[0].weight  # tied
    start = sums(model)
    for parameter in model.parameters():
        with torch.no_grad():
            for place in (0, -1):
                flat = parameter.view(-1) if parameter.is_contiguous() else parameter[0, 0, 0]
                kept = flat[place].clone()
                flat[place] = kept * 1.01
                assert sums(model) != start
                flat[place] = kept
                assert sums(model) == start
