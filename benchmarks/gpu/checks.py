"""Is what comes from a device right? Every direction, engine and kind of layer beside float64 autograd on the CPU."""

import copy
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import forwardinf as fi
from benchmarks.data import Examples
from benchmarks.runner import say
from forwardinf.data.examples import examples
from forwardinf.models.borrowed import borrowed
from forwardinf.perturb.direction import Fitting
from forwardinf.perturb.metric import Sides, metric
from forwardinf.perturb.parameters import select
from forwardinf.perturb.registry import make_direction
from forwardinf.tasks.feed import Feed

ROWS, QUERIES = 24, 2
DIRECTIONS = ("plain", "sign", "diagonal", "kfac", "ekfac", "gfim", "cg", "hold")
AUTOGRAD, OURS = "float64 autograd on the CPU", "forwardinf in float64 on the CPU"
CPU = torch.device("cpu")
Row = dict[str, Any]


class Recurrent(nn.Module):
    """A recurrent layer over the rows of a picture."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent, self.head = kind(8, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x.squeeze(1))[0][:, -1])


def small(seed: int, kind: type[nn.RNNBase] | None = None) -> tuple[nn.Module, Examples, Examples]:
    """Return (model, training data, queries): a small convolutional or recurrent classifier of 8×8 pictures, float64."""
    torch.manual_seed(seed)
    plain = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, 4)
    )
    model = (plain if kind is None else Recurrent(kind)).double().eval()
    x, y = torch.randn(ROWS + QUERIES, 1, 8, 8).double(), torch.randint(4, (ROWS + QUERIES,))
    return model, (x[:ROWS], y[:ROWS]), (x[ROWS:], y[ROWS:])


def flat(model: nn.Module, one: Examples) -> dict[str, Tensor]:
    """The gradient of one example's loss, by autograd."""
    x, y = one
    loss = nn.functional.cross_entropy(model(x[None]), y[None])
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


def vector(gradient: dict[str, Tensor], names: list[str]) -> Tensor:
    """Its numbers in order."""
    return torch.cat([gradient[name].double().flatten() for name in names])


def by_autograd(model: nn.Module, train: Any, queries: Any, rule: fi.Perturbation) -> Tensor:
    """gᵢᵀ P g_q from float64 gradients of one example at a time on the CPU, ``(queries, rows)``."""
    names = [name for name, _ in model.named_parameters()]
    with borrowed(model) as lent:
        feed = Feed(lent, fi.Classification(), examples(train), CPU)
        direction = make_direction(Fitting(rule, feed, select(lent, None), 8, progress=False))
        rows = torch.stack([vector(flat(lent, one), names) for one in zip(*train, strict=True)])
        asked = []
        for one in zip(*queries, strict=True):
            found = direction({name: tensor.clone() for name, tensor in flat(lent, one).items()})
            asked.append(vector({name: found.get(name, torch.zeros(())) for name in names}, names))
    return torch.stack(asked) @ rows.T


def by_pushing(model: nn.Module, train: Any, queries: Any, length: float, *, two_sided: bool) -> Tensor:
    """How losses change when the parameters really move by ``length`` of their norm along a query's gradient, on the CPU."""
    names = [name for name, _ in model.named_parameters()]
    theta = vector(dict(model.named_parameters()), names).detach()

    def losses(at: Tensor) -> Tensor:
        moved = copy.deepcopy(model)
        nn.utils.vector_to_parameters(at, moved.parameters())
        with torch.no_grad():
            return nn.functional.cross_entropy(moved(train[0]), train[1], reduction="none")

    found = []
    for one in zip(*queries, strict=True):
        g = vector(flat(model, one), names)
        push = length * theta.norm() * g / g.norm()
        back = losses(theta - push) if two_sided else losses(theta)
        found.append((losses(theta + push) - back) / (2 if two_sided else 1))
    return torch.stack(found)


def apart(got: Any, want: Any) -> float:
    """How far two tables are apart, relative to the second; scores of a query up to its own length."""
    g, w = (torch.tensor(np.asarray(each)).double() for each in (got, want))
    return float((g - w).norm() / w.norm().clamp_min(1e-300))


def scaled(values: Any) -> Tensor:
    """Each query's scores at length one: linear scores are rates along a unit step, up to a factor of their query."""
    found = torch.tensor(np.asarray(values)).double()
    return found / found.norm(dim=1, keepdim=True).clamp_min(1e-300)


def classifier_rows(device: torch.device, seed: int) -> Iterator[Row]:
    """Directions and engines, on a small network."""
    model, train, queries = small(seed)
    task, quiet = fi.Classification(), {"progress": False, "batch_size": 8}
    there = copy.deepcopy(model).to(device)
    for name in DIRECTIONS:
        rule = fi.Perturbation(name)
        want = by_autograd(model, train, queries, rule)
        for engine in ("factored", "forward"):
            got = fi.attribute(there, train, queries, task=task, perturbation=rule, engine=engine, **quiet).values
            yield row(f"direction {name}", engine, apart(scaled(got), scaled(want)), 1e-4)
    single = copy.deepcopy(model).float().to(device)
    narrow = [tuple(part.float() if part.is_floating_point() else part for part in data) for data in (train, queries)]
    want = by_autograd(model, train, queries, fi.Perturbation())
    for engine in ("factored", "forward"):
        got = fi.attribute(single, *narrow, task=task, perturbation=fi.Perturbation(), engine=engine, **quiet).values
        yield row("direction plain, float32", engine, apart(scaled(got), scaled(want)), 1e-2)
    for both in (False, True):
        rule = fi.Perturbation(length=0.01, two_sided=both)
        got = fi.attribute(there, train, queries, task=task, perturbation=rule, **quiet).values
        want = by_pushing(model, train, queries, 0.01, two_sided=both)
        yield row(f"finite, {'two sides' if both else 'one side'}", "forward", apart(got, want), 1e-4)
    yield row("K-FAC through the metric", "products", through_metric(there, train, device, model), 1e-4, OURS)


def through_metric(there: nn.Module, train: Any, device: torch.device, model: nn.Module) -> float:
    """How far products of gradients taken through the device's metric are from those through the CPU's."""
    names, found = [name for name, _ in model.named_parameters()], []
    for each, where in ((there, device), (model, CPU)):
        with borrowed(each) as lent:
            feed = Feed(lent, fi.Classification(), examples(train), where)
            fitting = Fitting(fi.Perturbation("kfac"), feed, select(lent, None), 8, progress=False)
            sides = metric(fitting)
            own = [flat(model, one) for one in zip(*train, strict=True)]
            taken = [torch.cat([_taken(sides[n], g[n].to(where)).cpu() for n in names]) for g in own]
        found.append(torch.stack(taken) @ torch.stack(taken).T)
    return apart(*found)


def _taken(sides: Sides, matrix: Tensor) -> Tensor:
    found = matrix.reshape(len(matrix), -1) if matrix.ndim > 1 else matrix.reshape(1, -1)
    found = found if sides.left is None else sides.left.times(found)
    found = found if sides.right is None else sides.right.times(found.T).T
    return (found * sides.scale).flatten().double()


def recurrent_rows(device: torch.device, seed: int) -> Iterator[Row]:
    """Recurrent layers in eval mode, which cuDNN cannot go back through."""
    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        model, train, queries = small(seed, kind)
        want = by_autograd(model, train, queries, fi.Perturbation())
        got = fi.attribute(copy.deepcopy(model).to(device), train, queries, task=fi.Classification(), engine="forward",
                           perturbation=fi.Perturbation(), progress=False, batch_size=8)  # fmt: skip
        yield row(f"recurrent: {kind.__name__}", "forward", apart(scaled(got.values), scaled(want)), 1e-4)


def joint_rows(device: torch.device, seed: int) -> Iterator[Row]:
    """Sets named jointly."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)).double().eval()
    data = torch.randn(ROWS, 1, 4, 4).double()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0]) - batch[0].flatten(1)).square().mean(1)

    tables = [fi.trace_images(each, (data,), (data[:2],), task=loss, jointly=True, progress=False).table
              for each in (copy.deepcopy(model).to(device), model)]  # fmt: skip
    same = float((tables[0]["train"].to_numpy() != tables[1]["train"].to_numpy()).mean())
    yield row("jointly: examples named otherwise", "share", same, 0.0, OURS)
    yield row("jointly: what each took with it", "gradients", apart(*(table["score"] for table in tables)), 1e-4, OURS)


def diffusion_rows(device: torch.device, seed: int) -> Iterator[Row]:
    """Both readings of generated images, where diffusers is installed."""
    if find_spec("diffusers") is None:
        yield {"what": "diffusion", "how": "gradients", "skipped": "diffusers is not installed"}
        return
    import diffusers

    torch.manual_seed(seed)
    model = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).double().eval()  # fmt: skip
    task = fi.Diffusion(diffusers.DDPMScheduler(num_train_timesteps=50), timesteps=[10, 30])
    data = torch.randn(ROWS // 2, 1, 8, 8).double()
    for reading in ("loss", "picture"):
        values = [fi.trace_images(each, data, data[:2] + 0.1, task=task, reading=reading, progress=False).scores.values
                  for each in (copy.deepcopy(model).to(device), model)]  # fmt: skip
        yield row(f"diffusion, reading {reading}", "gradients", apart(*values), 1e-4, OURS)


def row(what: str, how: str, error: float, tolerance: float, against: str = AUTOGRAD) -> Row:
    """One line of the table."""
    return {"what": what, "how": how, "against": against, "error": float(f"{error:.2e}"), "tolerance": tolerance,
            "right": error <= tolerance}  # fmt: skip


PARTS: tuple[Callable[[torch.device, int], Iterator[Row]], ...] = (
    classifier_rows, recurrent_rows, joint_rows, diffusion_rows
)  # fmt: skip


def checks(device: torch.device, seed: int) -> list[Row]:
    """Return the table; a part that raises is a row that is wrong, and says what."""
    found: list[Row] = []
    for part in PARTS:
        try:
            found.extend(part(device, seed))
        except Exception as error:  # the other parts are still worth knowing
            found.append(
                {"what": part.__name__, "how": "", "right": False, "raised": f"{type(error).__name__}: {error}"}
            )
    for each in found:
        say(each)
    return found
