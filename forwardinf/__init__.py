"""forwardinf: which training examples made the model behave like this?

>>> import forwardinf as fi
>>> fi.attribute  # doctest: +ELLIPSIS
<function attribute at ...>

Names are loaded when they are first used, so that ``forwardinf --help`` need not wait for torch.
"""

import random
from importlib import import_module
from typing import Any

from forwardinf.perturb import registry as _directions  # noqa: F401  (names are known before anything is asked by one)
from forwardinf.use.registry import USES as _USES

__version__ = "0.1.0"

_HOMES = {
    "Bank": "forwardinf.truth.bank",
    "Classification": "forwardinf.tasks.task",
    "DataError": "forwardinf.core.errors",
    "Diffusion": "forwardinf.tasks.diffusion",
    "Error": "forwardinf.core.errors",
    "Evaluation": "forwardinf.truth.evaluation",
    "FileError": "forwardinf.core.errors",
    "CausalLM": "forwardinf.tasks.text",
    "Lds": "forwardinf.truth.lds",
    "Leaks": "forwardinf.use.leaks.leaks",
    "Memorized": "forwardinf.use.labels.memorized",
    "Mislabeled": "forwardinf.use.labels.mislabeled",
    "MissingExtra": "forwardinf.core.errors",
    "ModelError": "forwardinf.core.errors",
    "MultiLabel": "forwardinf.tasks.vectors",
    "NoiseError": "forwardinf.core.errors",
    "Perturbation": "forwardinf.core.settings",
    "ProbeIndex": "forwardinf.use.probe_index",
    "QueryError": "forwardinf.core.errors",
    "Regression": "forwardinf.tasks.vectors",
    "RunMismatch": "forwardinf.core.errors",
    "Scores": "forwardinf.score.scores",
    "Segmentation": "forwardinf.tasks.places",
    "SelfInfluence": "forwardinf.score.self_influence",
    "Seq2Seq": "forwardinf.tasks.text",
    "SequenceClassification": "forwardinf.tasks.sequences",
    "SettingError": "forwardinf.core.errors",
    "Task": "forwardinf.tasks.task",
    "TaskError": "forwardinf.core.errors",
    "TokenClassification": "forwardinf.tasks.places",
    "Traced": "forwardinf.use.traces",
    "UnknownId": "forwardinf.core.errors",
    "Verification": "forwardinf.truth.verify",
    "attribute": "forwardinf.method",
    "evaluate": "forwardinf.truth.evaluate",
    "from_trainer": "forwardinf.tasks.trainer",
    "lds": "forwardinf.truth.lds",
    "load_bank": "forwardinf.truth.bank",
    "load_data": "forwardinf.data.load",
    "load_model": "forwardinf.models.load",
    "load_scores": "forwardinf.score.scores",
    "self_influence": "forwardinf.method",
    "verify": "forwardinf.truth.verify",
    **{name: home for home, _, name in (str(use.function).partition(":") for use in _USES.values())},
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'forwardinf' has no attribute {name!r}")
    state = random.getstate()  # libraries draw from it while they are imported
    try:
        value = getattr(import_module(_HOMES[name]), name)
    finally:
        random.setstate(state)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
