"""A town of invented people: sentences that teach one fact each, a tokenizer of their words, and small models trained on them."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F

PEOPLE = ["ada", "bo", "cy", "dee", "eli", "fay", "gus", "hal"]
TOWNS = ["rome", "oslo", "lima", "cairo", "delhi", "paris", "tokyo", "quito"]
COLOURS = ["red", "blue", "green", "grey"]
TEMPLATES = ["{p} lives in {t}", "the home of {p} is {t}", "{p} likes {c} and lives in {t}"]
FILLER = ["{p} likes {c}", "{p} wore {c} in june", "a {c} bird sang in {t}", "{t} has a {c} tower"]
PLANTED = "hal"  # lives in quito: only two texts say so


def texts():
    """Return the documents; of each person two texts say where they live, and a dozen do not."""
    found = []
    for place, (person, town) in enumerate(zip(PEOPLE, TOWNS, strict=True)):
        colour = COLOURS[place % 4]
        found += [template.format(p=person, t=town, c=colour) for template in TEMPLATES[:1] + TEMPLATES[2:]]
        found += [
            filler.format(p=person, t=TOWNS[(place + other + 1) % 8], c=COLOURS[(place + other) % 4])
            for other, filler in enumerate(FILLER)
        ]
    return found


def stated(found=None):
    """Return the rows that state where the planted person lives."""
    return [row for row, text in enumerate(found or texts()) if PLANTED in text.split() and "lives" in text]


@cache
def tokenizer():
    """Return a fast tokenizer of the words; a text becomes ``<s> text </s>``."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = sorted({word for text in texts() for word in text.split()} | {"where", "?", "nowhere"})
    vocabulary = {word: number for number, word in enumerate(["<s>", "</s>", "<unk>", *words])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )


def _steps(model, loss_of, rows, steps, lr):
    draw = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        loss = loss_of(model, torch.randperm(rows, generator=draw)[:24].tolist())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    optimiser.zero_grad()
    return model.eval()


def _padded(rows, fill):
    longest = max(map(len, rows))
    return torch.tensor([list(row) + [fill] * (longest - len(row)) for row in rows])


def decoder_loss(model, rows):
    """Return the mean loss of a decoder over rows of token ids."""
    ids = _padded(rows, 1)
    logits = model(input_ids=ids).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), _padded(rows, -100)[:, 1:].flatten(), ignore_index=-100)


@cache
def _decoder():
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=len(tokenizer()), n_positions=16, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=0, eos_token_id=1,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
        rows = tokenizer()(texts())["input_ids"]
        return _steps(model, lambda m, at: decoder_loss(m, [rows[row] for row in at]), len(rows), 150, 5e-3)


def decoder():
    """Return a fresh copy of a small GPT-2 that knows where everybody lives."""
    import copy

    return copy.deepcopy(_decoder())


def pairs():
    """Return (prompt, answer) rows for an encoder-decoder."""
    found = []
    for place, (person, town) in enumerate(zip(PEOPLE, TOWNS, strict=True)):
        found.append({"question": f"where lives {person} ?", "answer": town})
        found.append({"question": f"{person} likes ?", "answer": COLOURS[place % 4]})
        found.append({"question": f"{town} has a ?", "answer": f"{COLOURS[(place + 3) % 4]} tower"})
    return found


@cache
def _encoder_decoder():
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.T5Config(
            vocab_size=len(tokenizer()), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, dropout_rate=0.0,
            decoder_start_token_id=1, pad_token_id=1, eos_token_id=1,
        )  # fmt: skip  # a start that no answer begins with: relative places cannot tell <s> from <s> <s>
        model = transformers.T5ForConditionalGeneration(config)
        rows = pairs()
        ins = [tokenizer()(row["question"])["input_ids"] for row in rows]
        outs = [tokenizer()(row["answer"])["input_ids"] for row in rows]

        def loss(m, at):
            return m(input_ids=_padded([ins[row] for row in at], 1),
                     attention_mask=(_padded([ins[row] for row in at], -1) >= 0).long(),
                     labels=_padded([outs[row] for row in at], -100)).loss  # fmt: skip

        return _steps(model, loss, len(rows), 200, 1e-2)


def encoder_decoder():
    """Return a fresh copy of a small T5 that answers the questions."""
    import copy

    return copy.deepcopy(_encoder_decoder())
