"""How a query moves the model: every setting, frozen, keyword-only, checked at birth, and safe to send through JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from forwardinf.core.direction_facts import DIRECTIONS as DIRECTIONS
from forwardinf.core.direction_facts import PRESETS, taking
from forwardinf.core.errors import SettingError, choose

Fisher = Literal["true", "empirical", "draws"]
Toward = Literal["ascent", "descent"]
Behaviour = Literal["clean", "as_published"]
Reading = Literal["loss", "root", "auto"]

REPLAY_RATE = 0.01
# The settings of a rate: what P is, and what is read; the others are of a length.
OF_RATES = ("direction", "parameters", "damping", "fisher", "fit_examples", "temper", "reading")


@dataclass(frozen=True, init=False)
class Perturbation:
    """How far, and which way, one query moves the model.

    A direction is a vector made from the query's gradient; a length rule scales it. Exactly one of ``length``, ``rise``
    and ``lr`` sets the length; with none of them it is ``length="linear"``.

    Attributes:
        direction: ``"plain"`` is the gradient of the query's measurement; ``"sign"`` its sign, element by element. The
            others precondition it by curvature fitted on the training data once (kept in ``cache_dir``):
            ``"diagonal"`` (Fisher), ``"kfac"``, ``"ekfac"`` (Kronecker-factored Fisher, with corrected eigenvalues),
            ``"gfim"`` (HyperINF's d×d Fisher of each weight; vectors by the diagonal), ``"cg"`` (the whole Gauss–Newton
            matrix by conjugate gradients: iterations over the training data for each query, for tasks that say what the
            model predicts; the Hessian itself where the model is linear in what moves), ``"hold"`` (push on the query,
            hold the rest: the empirical Fisher in example space, for any architecture). Or one that was added
            (docs/extending.md).
        length: ``"linear"``: the rate ``gᵢᵀ P g_q``, exactly what a gradient library computes (unit: task unit per unit
            step). A number: finite, ‖Δθ‖/‖θ‖ over the parameters that move (for LoRA adapters: of the change in the
            effective weights over the weights they adapt). Finite scores are in the task's unit.
        rise: Finite: move until the query's own measured loss has risen by this much, in the task's unit (per counted
            token for text); ``"0.5x"``: by that share of its loss. Found by bisection on the query alone to 2 %;
            ‖Δθ‖/‖θ‖ is capped at .3, and the status of each query says ``ok``, ``capped`` or ``unreachable``.
        lr: Finite: the raw step, multiplied into the direction. For reproducing papers.
        toward: ``"ascent"`` unlearns the query, ``"descent"`` learns it again. Scores mean the same for both.
        steps: The length is walked in this many equal steps, the direction taken anew at each. Finite lengths only.
        two_sided: ``True``: half the difference between the two sides (two readings per query; the error falls from
            first to second order in the length). ``"auto"``: one-sided, with ``replay`` two-sided.
        parameters: Glob or globs over parameter names; ``None``: those with ``requires_grad`` (in a PEFT model with
            none: the active adapter).
        damping: λ added to the curvature: a number, a multiple of its own scale (for ``hold`` of mean ‖gᵢ‖², for the others of
            the mean diagonal); ``"auto"``: the rule chosen by measurement (docs/faithfulness.md).
        fisher: ``"true"``: labels sampled from the model's own prediction; ``"empirical"``: the training labels (not for
            ``cg``, which has no labels in it); ``"draws"``: the training loss of each timestep and noise by itself
            (denoisers, ``direction="diagonal"``).
        fit_examples: How many training examples the curvature is fitted on; ``"auto"``: all, up to what its memory and
            time allow (``cg``: 4,096).
        temper: For ``hold``: β, every gradient counts in the curvature at length ‖g‖^(1−β). 0: the plain empirical Fisher, in
            which the few examples with large losses rule. ``"auto"``: ½, which weights a well-fitted example as the
            Gauss–Newton matrix does (docs/faithfulness.md).
        reading: What is read of a training example: ``"loss"``, or ``"root"``: its loss ℓ on a scale that is 2√ℓ where
            ℓ is small and ℓ + 1.4 where it is large (:mod:`forwardinf.tasks.root`), so that fitted examples count by more
            than the little that is left of their gradient. In √nats; for :class:`Classification`. ``"auto"``: ``"root"``
            where the task allows it.
        replay: None, or for how many steps of SGD training is continued, with the query added to every batch of 64 as one
            more example, once counted negatively and once positively (two-sided, same order, dropout off, BatchNorm as
            it is). ``lr`` is the rate of those steps, .01 unless given: best that of the last epochs of training. Scores are
            finite. Each query costs twice as many training steps, and where there are several, as much again to read it.
        behaviour: ``"as_published"`` reproduces the authors' released notebook (one Adam step in training mode on a
            doubled example, absolute difference); exists for comparison only. See :meth:`preset`.
        seed: Seed of whatever the perturbation draws (``as_published``: the resampled query).

    Raises:
        SettingError: A value is unknown or out of range, or a setting does not apply beside another.

    Example:
        >>> Perturbation("sign", rise=0.5, two_sided=True).kind
        'finite'
        >>> Perturbation().length
        'linear'
    """

    direction: str = "plain"
    length: float | Literal["linear"] | None = "linear"
    rise: float | str | None = None
    lr: float | None = None
    toward: str = "ascent"
    steps: int = 1
    two_sided: bool | Literal["auto"] = "auto"
    parameters: tuple[str, ...] | None = None
    damping: float | Literal["auto"] = "auto"
    fisher: str = "true"
    fit_examples: int | Literal["auto"] = "auto"
    temper: float | Literal["auto"] = "auto"
    reading: str = "loss"
    replay: int | None = None
    behaviour: str = "clean"
    seed: int = 0

    def __init__(
        self,
        direction: str = "plain",
        *,
        length: float | Literal["linear"] | None = None,
        rise: float | str | None = None,
        lr: float | None = None,
        toward: Toward | str = "ascent",
        steps: int = 1,
        two_sided: bool | Literal["auto"] = "auto",
        parameters: str | tuple[str, ...] | list[str] | None = None,
        damping: float | Literal["auto"] = "auto",
        fisher: Fisher | str = "true",
        fit_examples: int | Literal["auto"] = "auto",
        temper: float | Literal["auto"] = "auto",
        reading: Reading | str = "loss",
        replay: int | None = None,
        behaviour: Behaviour | str = "clean",
        seed: int = 0,
    ) -> None:
        """Check every setting; see the class for their meaning."""
        if replay is not None and length is None and rise is None and lr is None:
            lr = REPLAY_RATE
        if length is None and rise is None and lr is None:
            length = "linear"
        patterns = (parameters,) if isinstance(parameters, str) else parameters
        if isinstance(patterns, list | tuple) and patterns and all(isinstance(pattern, str) for pattern in patterns):
            patterns = tuple(patterns)
        elif patterns is not None:
            raise SettingError("Perturbation(parameters=)", expected="a glob over parameter names, or a list of them",
                               got=repr(parameters))  # fmt: skip
        length, rise, lr, damping = _number(length), _number(rise), _number(lr), _number(damping)
        temper = _number(temper)
        values = locals() | {"parameters": patterns}
        for field in fields(self):
            object.__setattr__(self, field.name, values[field.name])
        self._check()

    def _check(self) -> None:
        """Refuse what no setting can be, then what one of them can be and beside another cannot."""
        self._check_words()
        self._check_numbers()
        self._check_together()

    def _check_words(self) -> None:
        if self.direction not in DIRECTIONS:
            raise choose("Perturbation(direction=)", str(self.direction), DIRECTIONS)
        if self.toward not in get_args(Toward):
            raise choose("Perturbation(toward=)", str(self.toward), get_args(Toward))
        if self.behaviour not in get_args(Behaviour):
            raise choose("Perturbation(behaviour=)", str(self.behaviour), get_args(Behaviour))
        if self.reading not in get_args(Reading):
            raise choose("Perturbation(reading=)", str(self.reading), get_args(Reading))
        given = [name for name in ("length", "rise", "lr") if getattr(self, name) is not None]
        if len(given) != 1:
            raise SettingError(
                "Perturbation()", expected="exactly one of length, rise, lr", got=" and ".join(given), do="Keep one."
            )

    def _check_numbers(self) -> None:
        takes = DIRECTIONS[self.direction].takes
        if self.length is not None and self.length != "linear":
            _positive("length", self.length, below=1.0, instead="'linear', or a number like 0.03")
        if isinstance(self.rise, str):
            _rise_share(self.rise)
        elif self.rise is not None:
            _positive("rise", self.rise, instead="a number like 0.5, or a share of the query's loss like '0.5x'")
        if self.lr is not None:
            _positive("lr", self.lr, instead="a number like 5e-3; to reverse the push use toward='descent'")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise SettingError("Perturbation(steps=)", expected="a whole number ≥ 1", got=repr(self.steps))
        if self.damping != "auto":
            _positive("damping", self.damping, instead="'auto', or a number like 30")
        if self.fisher not in get_args(Fisher):
            raise choose("Perturbation(fisher=)", str(self.fisher), get_args(Fisher))
        if self.fisher == "draws" and "draws" not in takes:
            raise SettingError("Perturbation(fisher='draws')", expected=taking("draws"), got=repr(self.direction))
        for name in ("fit_examples", "replay"):
            value = getattr(self, name)
            if value not in ("auto", None) and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise SettingError(f"Perturbation({name}=)", expected="a whole number ≥ 1", got=repr(value))
        if self.temper != "auto":
            beta = self.temper
            if isinstance(beta, bool | str) or not 0 <= beta <= 1 or "temper" not in takes:
                raise SettingError("Perturbation(temper=)", expected=f"a number from 0 to 1, beside {taking('temper')}",
                                   got=repr(beta))  # fmt: skip

    def _check_together(self) -> None:
        if self.steps > 1 and self.length == "linear":
            raise SettingError(
                "Perturbation(steps=)", expected="1 with length='linear' (a rate has no steps)", got=str(self.steps),
                do="Choose a finite length=, rise= or lr=.",
            )  # fmt: skip
        if not isinstance(self.two_sided, bool) and self.two_sided != "auto":
            raise SettingError("Perturbation(two_sided=)", expected="True, False or 'auto'", got=repr(self.two_sided))
        if self.two_sided is True and self.toward == "descent":
            raise SettingError(
                "Perturbation(toward='descent')", expected="one-sided", got="two_sided=True, which uses both sides",
                do="Drop one of the two.",
            )  # fmt: skip
        if self.replay is not None and (self.lr is None or self.two_sided is False or self.direction != "plain"
                                        or self.toward != "ascent" or self.steps != 1 or not self.signed):  # fmt: skip
            raise SettingError(
                "Perturbation(replay=)", expected="lr= (the rate of its steps), direction='plain', and both sides",
                got=repr(self),
                do="Leave length=, rise=, toward=, steps= and two_sided= out: continued training makes its own way.",
            )  # fmt: skip
        if self.toward == "descent" and self.rise is not None:
            raise SettingError(
                "Perturbation(rise=)", expected="toward='ascent' (a rise is found on the ascent side)", got="'descent'",
                do="Use length= for descent, or rise= with two_sided=True.",
            )  # fmt: skip
        if self.behaviour == "as_published" and (
            self.lr is None
            or self.two_sided is True
            or self.direction != "plain"
            or self.toward != "ascent"
            or self.steps != 1
            or self.reading != "loss"
        ):
            raise SettingError(
                "Perturbation(behaviour='as_published')",
                expected="direction='plain', toward='ascent', lr=, one step, one-sided, reading='loss': as the notebook has it",
                got=repr(self), do="Use Perturbation.preset('as_published').",
            )  # fmt: skip

    @property
    def kind(self) -> Literal["linear", "finite"]:
        """``"linear"`` (a rate) or ``"finite"`` (what happens at a stated length). The two are never mixed."""
        return "linear" if self.length == "linear" else "finite"

    @property
    def tempering(self) -> float:
        """β of ``temper``: 0 for every direction but ``hold``."""
        if "temper" not in DIRECTIONS[self.direction].takes:
            return 0.0
        return 0.5 if self.temper == "auto" else float(self.temper)

    def for_task(self, name: str, *, root: bool) -> Perturbation:
        """Return these settings with ``reading="auto"`` decided for a task, whose losses have a root reading or not.

        Raises:
            SettingError: The root reading is asked for, and the task has none.
        """
        if self.reading == "root" and not root:
            raise SettingError("Perturbation(reading='root')", expected="a loss that is −log of one probability",
                               got=name, do="Choose reading='loss', or 'auto'.")  # fmt: skip
        return replace(self, reading="root" if root else "loss") if self.reading == "auto" else self

    def unit_of(self, unit: str) -> str:
        """Return the unit of scores whose losses are in ``unit``."""
        return f"√{unit}" if self.reading == "root" else unit

    @property
    def both_sides(self) -> bool:
        """Whether each query is read on two sides."""
        return self.two_sided is True or (self.replay is not None and self.two_sided == "auto")

    @property
    def straddles(self) -> bool:
        """Whether the two sides are the ends of one push through the model as it is, a finite length apart."""
        return self.two_sided is True and self.replay is None and self.kind == "finite"

    @property
    def signed(self) -> bool:
        """Whether scores carry a sign; the published behaviour takes absolute values."""
        return self.behaviour != "as_published"

    @classmethod
    def preset(cls, name: str) -> Perturbation:
        """Return a named setting: ``"linear"`` (the default), ``"finite"``, ``"unlearning"`` or ``"as_published"``.

        A direction's name is one too: ``"ekfac"`` is ``Perturbation("ekfac")``.

        ``"linear"`` is the rate along ``gfim``, fitted once in a few forward passes and read for all queries in one pass.
        ``"finite"`` pushes along ``hold`` until the query's loss has risen by half a unit, on both sides: about 10 F a query.
        Both read classifiers by the root of their losses. They agree better with retraining than kronfluence's EK-FAC on
        every bank of docs/faithfulness.md. ``"as_published"`` is the authors'
        released leakage notebook (Forward-INF, CVPR 2024): one Adam step of 5e-3 up the query's loss, the example doubled, in
        training mode, and the absolute change of the training losses. ``"unlearning"`` is Attribution by Unlearning (Wang et
        al., NeurIPS 2024) for denoisers: one step along F⁻¹g, F the diagonal Fisher over single (image, timestep, noise)
        draws, with a floor of .01 of its mean that the original lacks, a hundredth of the weights long;
        :func:`forwardinf.trace_images` confines it to cross-attention keys and values.

        Raises:
            SettingError: There is no such preset, and no such direction.
        """
        if name in DIRECTIONS:
            return cls(name)
        if name not in PRESETS:
            raise choose("perturbation", str(name), (*PRESETS, *DIRECTIONS))
        return cls(**PRESETS[name])

    def to_dict(self) -> dict[str, Any]:
        """Return plain types only, ready for JSON or YAML; :meth:`from_dict` undoes it."""
        plain = asdict(self)
        return plain | {"parameters": None if self.parameters is None else list(self.parameters)}

    def told(self) -> str:
        """Return the direction, and what is not as it is by default, for people.

        Example:
            >>> Perturbation("ekfac", rise=0.5).told()
            'ekfac, rise=0.5'
        """
        usual = type(self)(self.direction).to_dict()
        changed = [f"{name}={value!r}" for name, value in self.to_dict().items() if value not in (usual[name], None)]
        return ", ".join([self.direction, *changed])

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Perturbation:
        """Build from a mapping; ``{"preset": name}`` starts from there. An unknown name is an error with a guess."""
        names = [field.name for field in fields(cls)]
        for name in settings:
            if name not in (*names, "preset"):
                raise choose("perturbation settings", str(name), (*names, "preset"))
        rest = {name: value for name, value in settings.items() if name != "preset"}
        if "preset" not in settings:
            return cls(**rest)
        base = cls.preset(str(settings["preset"])).to_dict()
        if any(rest.get(name) is not None for name in ("length", "rise", "lr")):
            base.update(length=None, rise=None, lr=None)  # a length given beside a preset replaces the preset's
        return cls(**(base | rest))


def rise_target(rise: float | str, loss: float) -> float:
    """Return the rise asked for, in the task's unit: ``rise`` itself, or ``"0.5x"`` times ``loss``."""
    return _rise_share(rise) * loss if isinstance(rise, str) else float(rise)


def _rise_share(text: str) -> float:
    try:
        share = float(text.removesuffix("x"))
    except ValueError:
        share = math.nan
    if not text.endswith("x") or not (0 < share < math.inf):
        raise SettingError("Perturbation(rise=)", expected="a number like 0.5, or a share like '0.5x'", got=repr(text))
    return share


def _number(value: Any) -> Any:
    """Return a number as a plain float (1 and 1.0 are one setting), anything else as it is."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _positive(name: str, value: object, *, instead: str, below: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < below):
        raise SettingError(f"Perturbation({name}=)", expected=instead, got=repr(value))
