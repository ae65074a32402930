"""``python -m benchmarks NAME [options]`` answers one question; ``NAME --help`` explains it, ``--help`` lists them all."""

import sys
from importlib import import_module

from benchmarks.runner import Evaluation, run

EVALUATIONS = {  # name: where it is, how long it takes, what it asks
    "forward": ("engines.forward", "6 minutes", "one query beyond one plain forward pass"),
    "memory": ("memory.reading", "3 minutes", "memory while reading, beyond the model and a plain forward"),
    "engines": ("engines.engines", "50 minutes; --small 8", "what each engine costs"),
    "first-call": ("engines.first_call", "40 minutes", "what a whole first call costs"),
    "fit": ("engines.fit", "5 minutes", "EK-FAC: seconds of the fit, ours over kronfluence's"),
    "published": ("published.published", "10 minutes", "as_published beside the clean settings"),
    "attribution": ("attribution.attribution", "hours; says it", "how faithful is each way of scoring"),
    "probes": ("probes.probes", "hours; says it", "what responses to M shared perturbations are worth"),
    "verify": ("verify.verify", "hours; says it", "does removing a training example tell the same as adding the test"),
    "leaks": ("leaks.leaks", "20 minutes", "are copies of training examples found among test examples"),
    "mislabeled": ("labels.mislabeled", "an hour", "which labels are wrong"),
    "memorized": ("labels.memorized", "half an hour", "what is known by heart"),
    "trace": ("text.trace", "80 minutes", "which texts taught a small decoder a fact"),
    "trace-removal": ("text.removal", "hours; says it", "does a fact fade when the texts that were named are removed"),
    "trace-images": ("images.evaluation", "90 minutes", "do the named training images make the generated image"),
    "gpu": ("gpu.gpu", "10 minutes on one GPU", "right, and how fast, on one GPU"),
}
USAGE = "usage: python -m benchmarks NAME [options]      (NAME --help explains one)"


def find(name: str) -> Evaluation:
    """Return an evaluation by its name."""
    module, _, question = EVALUATIONS[name]
    found = import_module(f"benchmarks.{module}")
    return Evaluation(name, question, found)


def main(argv: list[str]) -> None:
    """Run the evaluation that is named first."""
    name = argv[0] if argv else ""
    if name in ("-h", "--help"):
        rows = [f"  {each:14} {question}  ({time})" for each, (_, time, question) in EVALUATIONS.items()]
        print("\n".join([USAGE, "", *rows]))
    elif name in EVALUATIONS:
        run(find(name), argv[1:])
    else:
        raise SystemExit(f"{USAGE}\nNAME is one of {', '.join(EVALUATIONS)}")


if __name__ == "__main__":
    main(sys.argv[1:])
