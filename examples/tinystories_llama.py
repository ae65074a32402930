"""Which stretch of text taught a small language model the end of a story?

The model is stories260K, a plain `nn.Module` from token ids to logits. The training rows are windows of a TinyStories
excerpt; a query is a story's last sentence, given what comes before it. The excerpt holds the story itself, so the
window with that ending should come out on top: a check that anyone can read.

python examples/tinystories_llama.py --out stories.html
"""

import models_llama2c
import torch
from common import options, stories, text

import forwardinf as fi

LENGTH = 128  # tokens in a row


def story_end(tokenizer: models_llama2c.Tokenizer, story: str) -> dict[str, torch.Tensor]:
    """Return the end of a story as a row in which only the last sentence counts."""
    before, _, last = story.rstrip().rpartition(". ")
    ids, ending = tokenizer.encode(before + "."), tokenizer.encode(last, bos=False)
    labels = torch.tensor([-100] * len(ids) + ending)[-LENGTH:]
    return {"input_ids": torch.tensor(ids + ending)[-LENGTH:], "labels": labels}


def told(tokenizer: models_llama2c.Tokenizer, row: dict[str, torch.Tensor]) -> str:
    """Return a row as text; of a query, what counts stands behind an arrow."""
    if "labels" not in row:
        return tokenizer.decode(row["input_ids"])
    return f"{tokenizer.decode(row['input_ids'][row['labels'] < 0])} → {tokenizer.decode(row['labels'])}"


def main(argv: list[str] | None = None) -> fi.Scores:
    args = options(__doc__, n_train=700, n_queries=3).parse_args(argv)

    # Data
    tokenizer = models_llama2c.Tokenizer()
    ids = tokenizer.encode(text("tinystories_train_excerpt"), bos=False)
    train = {"input_ids": models_llama2c.windows(ids, LENGTH)[: args.n_train]}
    queries = [story_end(tokenizer, story) for story in stories()[: args.n_queries]]

    # Model
    model = models_llama2c.load()

    # Attribute: unlearn each ending until its loss has risen by half a nat per token, and read the windows again
    perturbation = fi.Perturbation.preset("finite")
    scores = fi.attribute(model, train, queries, task=fi.CausalLM(), perturbation=perturbation)

    # Show
    for query, row in enumerate(queries):
        ending = tokenizer.decode(row["labels"])
        print(f"\nquery {query}: ...{ending}")
        for best in scores.top(args.top, query).itertuples():
            window = " ".join(tokenizer.decode(train["input_ids"][best.train]).split())
            own = "holds it" if ending in window else "        "
            print(f"  {best.rank}. {own} share {best.share:+.2f}  window {best.train}: {window[:80]}...")
    if args.out:
        scores.report(args.out, show=lambda row: told(tokenizer, row))
    return scores


if __name__ == "__main__":
    main()
