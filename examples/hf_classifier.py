"""Which SST-2 sentences decided how a Hugging Face classifier feels about new ones?

A small BERT and its tokenizer are made and trained here, saved as a Hugging Face folder, and loaded back from it.

python examples/hf_classifier.py
"""

import tempfile

import torch
from common import options, sst2
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import forwardinf as fi


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a word tokenizer: words seen at least twice, the rest is [UNK]."""
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words.train_from_iterator(texts, trainers.WordLevelTrainer(min_frequency=2, special_tokens=special))
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=64, **names)


def make_model(folder: str, rows: list[dict], epochs: int) -> None:
    """Train a two-layer BERT on the rows, and save it and its tokenizer in the folder."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer([row["text"] for row in rows])
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes))
    adam = torch.optim.AdamW(model.parameters(), lr=2e-3)
    collate = fi.SequenceClassification(tokenizer, max_length=64).collate
    for _ in range(epochs):
        for batch in torch.utils.data.DataLoader(rows, 64, shuffle=True, collate_fn=collate):
            adam.zero_grad()
            model(**batch).loss.backward()
            adam.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(argv: list[str] | None = None) -> fi.Scores:
    parser = options(__doc__, n_train=6920, n_queries=4)
    parser.add_argument("--epochs", type=int, default=2, help="of training (default %(default)s)")
    args = parser.parse_args(argv)

    # Data: rows of text and label; the task tokenises them
    train, dev = ([{"text": t, "label": y} for t, y in zip(*sst2(split), strict=True)] for split in ("train", "dev"))
    train, queries = train[: args.n_train], dev[: args.n_queries]

    with tempfile.TemporaryDirectory() as folder:
        # Model: yours would be a folder, or a name on the Hugging Face hub
        make_model(folder, train, args.epochs)
        model = fi.load_model(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)

    # Attribute
    task = fi.SequenceClassification(tokenizer, max_length=64)
    scores = fi.attribute(model, train, queries, task=task)

    # Show
    batch = task.collate(dev[:500])
    with torch.no_grad():
        right = task.logits(model, batch).argmax(1) == batch["labels"]
    print(f"accuracy on {len(right)} dev sentences: {right.float().mean():.1%}")
    for query, row in enumerate(queries):
        print(f"\n{'-+'[row['label']]} {row['text']}")
        for best in scores.top(args.top, query).itertuples():
            print(f"    {best.score:+.3g}  {'-+'[train[best.train]['label']]} {train[best.train]['text'][:90]}")
    if args.out:
        scores.report(args.out, show=lambda row: row["text"])
    return scores


if __name__ == "__main__":
    main()
