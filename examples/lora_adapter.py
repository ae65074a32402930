"""Which training rows does a LoRA adapter owe its new manners to?

A small Llama that knows only children's stories is adapted to Shakespeare by PEFT; adapter and base are saved as folders,
and the adapter's folder is all that is needed to attribute it. Only the adapter's tensors move.

python examples/lora_adapter.py
"""

import tempfile
from pathlib import Path

import models_llama2c
import torch
from common import options, text
from peft import LoraConfig, get_peft_model

import forwardinf as fi

LENGTH = 96  # tokens in a row


def make_adapter(folder: Path, rows: torch.Tensor, epochs: int) -> Path:
    """Save the base, train an adapter on the rows (N, T), and return the adapter's folder."""
    models_llama2c.to_transformers(models_llama2c.load()).save_pretrained(folder / "base")
    torch.manual_seed(0)
    base = fi.load_model(str(folder / "base"))
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for epoch in range(epochs):
        losses = []
        for batch in torch.utils.data.DataLoader(rows, 16, shuffle=True):
            adam.zero_grad()
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            adam.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: {sum(losses) / len(losses):.2f} nats per token")
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


def main(argv: list[str] | None = None) -> fi.Scores:
    parser = options(__doc__, n_train=600, n_queries=3)
    parser.add_argument("--epochs", type=int, default=3, help="of training (default %(default)s)")
    args = parser.parse_args(argv)

    # Data: the play's beginning to learn from, rows from much later to ask about
    tokenizer = models_llama2c.Tokenizer()
    play = text("tinyshakespeare")
    train = models_llama2c.windows(tokenizer.encode(play[:200_000], bos=False), LENGTH)[: args.n_train]
    queries = models_llama2c.windows(tokenizer.encode(play[500_000:510_000], bos=False), LENGTH)[: args.n_queries]

    # Model
    with tempfile.TemporaryDirectory() as folder:
        model = fi.load_model(str(make_adapter(Path(folder), train, args.epochs)))

    # Attribute: the plain rate by forward passes alone, so that the length can be seen (of the weights that are adapted)
    columns, rule = {"input_ids": train}, fi.Perturbation("plain")
    scores = fi.attribute(
        model, columns, {"input_ids": queries}, task=fi.CausalLM(), perturbation=rule, engine="forward"
    )

    # Show
    for query, row in enumerate(queries):
        print(f"\n{' '.join(tokenizer.decode(row).split())[:100]} ...")
        for best in scores.top(args.top, query).itertuples():
            print(f"    {best.score:+.3g}  {' '.join(tokenizer.decode(train[best.train]).split())[:90]} ...")
    if args.out:
        scores.report(args.out, show=lambda row: tokenizer.decode(row["input_ids"]))
    return scores


if __name__ == "__main__":
    main()
