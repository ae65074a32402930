"""Models that use parameters in uncommon ways, and the gradients of a case by autograd, one example at a time."""

import torch
from cases import Decoder
from cases import feed as unsealed
from torch import nn

import forwardinf as fi
from forwardinf.gradients.per_example import per_example_gradients
from forwardinf.perturb.parameters import select


def feed(given, data=None):
    """Return the parts that read; rows that pack documents know how many."""
    reader = unsealed(given, data)
    if given.task.packed:
        reader.examples.seal(range(len(reader.examples)), lambda done: None, given.task.parts)
    return reader


def dense(given, rows):
    """Return (units, P) float64: every gradient formed, parameters in order."""
    chosen = select(given.model, None)
    found = []
    for gradient, _ in per_example_gradients(feed(given), rows, chosen):
        found.append(torch.cat([gradient.get(n, torch.zeros_like(p)).flatten() for n, p in chosen.items()]))
    return torch.stack(found).double()


class Embedded(nn.Module):
    """A table that may be tied to the output, matrices without a module, a recurrent layer, grouped convolutions."""

    def __init__(self, tied):
        super().__init__()
        self.table = nn.Embedding(30, 8, padding_idx=0)
        self.out = nn.Linear(8, 30, bias=False)
        self.mix = nn.Parameter(torch.randn(8, 20))
        self.back = nn.Parameter(torch.randn(20, 8))
        self.rnn = nn.GRU(8, 8, batch_first=True)  # a use that is not known
        self.conv = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        if tied:
            self.out.weight = self.table.weight

    def forward(self, ids):
        x = self.rnn(self.table(ids) @ self.mix @ self.back)[0]
        return self.out(self.conv(x.mT).mean(2))


class Strange:
    def __init__(self, tied):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = Embedded(tied).double().eval()
            self.train = torch.randint(0, 30, (9, 6)), torch.randint(0, 30, (9,))
        self.task = fi.Classification()


class Packed:
    """Documents packed several to a row: more units than rows."""

    def __init__(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = Decoder(blocks=1).double().eval()
        self.train = torch.randint(3, 20, (9, 8), generator=torch.Generator().manual_seed(1))
        self.train[::2, 3] = 2
        self.train = list(self.train)
        self.task = fi.CausalLM(documents=2)
