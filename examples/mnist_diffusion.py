"""Which MNIST digits taught a diffusion model to draw a digit like this one?

The model knows no labels. They are printed so that the answer can be judged: strokes count, more than digits do.

python examples/mnist_diffusion.py --out digits.html
"""

import models_ddpm
import torch
from common import digits, listed, options
from PIL import Image

import forwardinf as fi


def main(argv: list[str] | None = None) -> fi.Scores:
    parser = options(__doc__, n_train=500, n_queries=4)
    parser.add_argument("--timesteps", type=int, default=4, help="noise levels to read at (default %(default)s)")
    args = parser.parse_args(argv)

    # Data: pictures alone
    images, labels = digits("mnist", "train")
    asked, asked_labels = digits("mnist", "test")
    train = models_ddpm.pixels_to_input(images[: args.n_train])
    queries = models_ddpm.pixels_to_input(asked[: args.n_queries])

    # Model: trained with times step/1000, asked by step number
    net = models_ddpm.load("sd_linear_100ep")
    model = models_ddpm.ByStep(net).eval()

    # Attribute: every picture is read under noise of its own, the same at each reading
    task = fi.Diffusion(scheduler=net.alpha_t, timesteps=args.timesteps, noises=1, target="epsilon")
    query_ids = [f"test {i}" for i in range(len(queries))]
    scores = fi.attribute(model, train, queries, task=task, query_ids=query_ids)

    # Show
    for query, label in zip(query_ids, asked_labels, strict=False):
        names = [f"a {digit}" for digit in range(10)]
        print(f"{query}, a {label}:", listed(scores.top(args.top, query), labels, names))
    if args.out:
        scores.report(args.out, show=picture)
    return scores


def picture(row: torch.Tensor) -> Image.Image:
    """Return one input (1, 28, 28) between -.5 and .5 as an image."""
    return Image.fromarray(row[0].add(0.5).mul(255).round().byte().numpy()).resize((84, 84))


if __name__ == "__main__":
    main()
