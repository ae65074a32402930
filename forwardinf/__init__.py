"""forwardinf: which training examples made the model behave like this?

>>> import forwardinf as fi
>>> fi.attribute  # doctest: +ELLIPSIS
<function attribute at ...>

Names are loaded when they are first used, so that ``forwardinf --help`` need not wait for torch.
"""

import random
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Bank": "forwardinf.score.bank",
    "Classification": "forwardinf.core.task",
    "DataError": "forwardinf.core.errors",
    "Diffusion": "forwardinf.core.task_diffusion",
    "Error": "forwardinf.core.errors",
    "Evaluation": "forwardinf.use.evaluation",
    "FileError": "forwardinf.core.errors",
    "CausalLM": "forwardinf.core.task_text",
    "Lds": "forwardinf.score.lds",
    "Leaks": "forwardinf.use.leakage",
    "Memorized": "forwardinf.use.memorize",
    "Mislabeled": "forwardinf.use.mislabel",
    "MissingExtra": "forwardinf.core.errors",
    "ModelError": "forwardinf.core.errors",
    "MultiLabel": "forwardinf.core.task_vectors",
    "NoiseError": "forwardinf.core.errors",
    "Perturbation": "forwardinf.core.settings",
    "ProbeIndex": "forwardinf.use.probe_index",
    "QueryError": "forwardinf.core.errors",
    "Regression": "forwardinf.core.task_vectors",
    "RunMismatch": "forwardinf.core.errors",
    "Scores": "forwardinf.score.scores",
    "Segmentation": "forwardinf.core.task_places",
    "SelfInfluence": "forwardinf.score.self_influence",
    "Seq2Seq": "forwardinf.core.task_text",
    "SequenceClassification": "forwardinf.core.task_sequence",
    "SettingError": "forwardinf.core.errors",
    "Task": "forwardinf.core.task",
    "TaskError": "forwardinf.core.errors",
    "TokenClassification": "forwardinf.core.task_places",
    "Traced": "forwardinf.use.traced",
    "UnknownId": "forwardinf.core.errors",
    "Verification": "forwardinf.use.verify",
    "attribute": "forwardinf.method",
    "evaluate": "forwardinf.use.evaluate",
    "from_trainer": "forwardinf.core.trainer",
    "lds": "forwardinf.score.lds",
    "leaks": "forwardinf.use.leakage",
    "load_bank": "forwardinf.score.bank",
    "load_data": "forwardinf.core.load_data",
    "load_model": "forwardinf.core.load_model",
    "load_scores": "forwardinf.score.scores",
    "memorized": "forwardinf.use.memorize",
    "mislabeled": "forwardinf.use.mislabel",
    "self_influence": "forwardinf.method",
    "trace": "forwardinf.use.facts",
    "trace_images": "forwardinf.use.diffusion",
    "verify": "forwardinf.use.verify",
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
