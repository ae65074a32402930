"""Which CIFAR-10 training images stand behind a ResNet-20's answers on test images?

python examples/cifar_resnet.py --out cifar.html      (keep the report to yourself: it shows CIFAR pictures)
"""

import models_resnet
import torch
from common import cifar_jpeg, cifar_lossless, listed, options
from PIL import Image

import forwardinf as fi


def main(argv: list[str] | None = None) -> fi.Scores:
    args = options(__doc__, n_train=4000, n_queries=5).parse_args(argv)

    # Data: the first training images, exact; and test images (JPEG quality, hence less accurate than in the paper)
    images, labels, names = cifar_lossless()
    asked, asked_labels = cifar_jpeg("test", args.n_queries)
    train = models_resnet.pixels_to_input(images[: args.n_train]), torch.from_numpy(labels[: args.n_train])
    queries = models_resnet.pixels_to_input(asked), torch.from_numpy(asked_labels)

    # Model
    model = models_resnet.load(depth=20)

    # Attribute: asked by its true label, what supports a wrong answer is found among the opponents
    query_ids = [f"test {i}" for i in range(len(asked))]
    scores = fi.attribute(model, train, queries, task=fi.Classification(), query_ids=query_ids)

    # Show
    with torch.no_grad():
        answers = model(queries[0]).argmax(1)
    for query, label, answer in zip(query_ids, asked_labels, answers, strict=True):
        print(f"\n{query}: {names[label]}, the model says {names[answer]}")
        print("  proponents:", listed(scores.top(args.top, query), labels, names))
        print("  opponents: ", listed(scores.bottom(args.top, query), labels, names))
    if args.out:
        scores.report(args.out, show=picture)
    return scores


def picture(row: tuple) -> Image.Image:
    """Return one row, a normalised image and its label, as an image."""
    return Image.fromarray(models_resnet.input_to_pixels(row[0])).resize((96, 96))


if __name__ == "__main__":
    main()
