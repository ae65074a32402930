"""Which Fashion-MNIST training images support, and which oppose, a small network's wrong answers?

python examples/fashion_cnn.py --out fashion.html
"""

import models_cnn
import torch
from common import digits, listed, options
from models_cnn import CLASSES, pixels_to_input
from PIL import Image

import forwardinf as fi


def main(argv: list[str] | None = None) -> fi.Scores:
    args = options(__doc__, n_train=10_000, n_queries=5).parse_args(argv)

    # Data
    images, labels = (part[: args.n_train] for part in digits("fashion_mnist", "train"))
    train = pixels_to_input(images), torch.from_numpy(labels)
    x, y = (part[:2000] for part in digits("fashion_mnist", "test"))
    x, y = pixels_to_input(x), torch.from_numpy(y)

    # Model: trained on the very images that are attributed; the seed decides everything
    model = models_cnn.train(*train, epochs=5)
    with torch.no_grad():
        answers = model(x).argmax(1)
    print(f"accuracy on {len(y)} test images: {(answers == y).float().mean():.1%}")
    wrong = (answers != y).nonzero().flatten()[: args.n_queries]

    # Attribute: asked by the answer it gave, so that proponents are what made it say so
    task = fi.Classification(query="predicted")
    query_ids = [f"test {int(i)}" for i in wrong]
    scores = fi.attribute(model, train, (x[wrong], y[wrong]), task=task, query_ids=query_ids)

    # Show
    for query, i in zip(query_ids, wrong, strict=True):
        print(f"\n{query}: {CLASSES[y[i]]}, the model says {CLASSES[answers[i]]}")
        print("  proponents:", listed(scores.top(args.top, query), labels, CLASSES))
        print("  opponents: ", listed(scores.bottom(args.top, query), labels, CLASSES))
    if args.out:
        scores.report(args.out, show=picture)
    return scores


def picture(row: tuple) -> Image.Image:
    """Return one row, an image (1, 28, 28) between 0 and 1 and its label, as an image."""
    return Image.fromarray(row[0][0].mul(255).round().byte().numpy()).resize((84, 84))


if __name__ == "__main__":
    main()
