"""WebNLG facts for tracing: the texts, the queries whose mask stands at the end, and a small decoder trained on the texts.

Everything is deterministic: tokenizer, order of the batches and initial weights come from the seed. Checkpoints lie in the
cache folder (FORWARDINF_CACHE), never in the repository; nor does any WebNLG text (CC BY-NC-SA).
"""

import gzip
import json
import math
import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.data import data_folder
from benchmarks.kept import save_tensors
from benchmarks.runner import say
from forwardinf.core import machine
from forwardinf.core.fingerprint import digest
from forwardinf.use.text.documents import answer_row

LONGEST = 128  # tokens
CPU = torch.device("cpu")
AT_ONCE = {"cpu": 16, "cuda": 128}  # texts whose gradients are sketched together
MASK = "[MASK]"


@dataclass(frozen=True)
class Recipe:
    """How a decoder is trained; its digest names the checkpoints."""

    vocabulary: int = 4096
    width: int = 192
    layers: int = 4
    heads: int = 6
    epochs: int = 8
    batch: int = 48
    lr: float = 2e-3
    decay: float = 0.01
    warmup: int = 150
    seed: int = 0
    kept: tuple[int, ...] = (2, 5, 8)  # epochs after which a checkpoint is kept; the last is the model


RECIPES = {"small": Recipe(), "large": Recipe(width=512, layers=8, heads=8, lr=1e-3)}  # the large one needs a GPU


@dataclass
class Question:
    """A prompt whose answer the model should have learnt, with what is known of where it stands in the corpus."""

    query: int
    prompt: str
    answer: str
    subject: str
    obj: str
    proponents: list[int]
    same_entities: list[int]
    held_out: str = field(repr=False)


def read(name: str) -> list[dict[str, Any]]:
    """Return one of the data set's files."""
    with gzip.open(data_folder() / "facts_webnlg" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def corpus() -> list[str]:
    """Return the texts, by id."""
    rows = read("corpus")
    assert [row["id"] for row in rows] == list(range(len(rows)))
    return [row["text"] for row in rows]


def questions() -> list[Question]:
    """Return the queries whose mask stands at the end (a causal model has no other context)."""
    found = []
    for row in read("queries"):
        head, mask, tail = row["masked"].partition(MASK)
        if mask and not tail.strip(" .") and len(head.split()) >= 3:
            found.append(Question(row["query"], head.rstrip(), row["answer"], row["subject"], row["object"],
                                  row["proponents"], row["same_entities"], row["held_out_text"]))  # fmt: skip
    return found


def tokenizer_of(texts: list[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the texts; a text becomes ``<s> text </s>``."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=recipe.vocabulary, special_tokens=["<s>", "</s>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def decoder(recipe: Recipe) -> GPT2LMHeadModel:
    """Return an untrained decoder with tied embeddings and no dropout."""
    torch.manual_seed(recipe.seed)
    config = GPT2Config(
        vocab_size=recipe.vocabulary, n_positions=LONGEST, n_embd=recipe.width, n_layer=recipe.layers, n_head=recipe.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def rows_of(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Return each text's token ids, cut to what the model reads."""
    return [ids[:LONGEST] for ids in tokenizer(texts)["input_ids"]]


def batches(lengths: list[int], size: int, draw: random.Random) -> list[list[int]]:
    """Return the rows of one epoch in batches of like length, in random order: hardly any padding."""
    rows = list(range(len(lengths)))
    draw.shuffle(rows)
    pools = [rows[start : start + 50 * size] for start in range(0, len(rows), 50 * size)]
    found = []
    for pool in pools:
        pool.sort(key=lambda row: lengths[row])
        found += [pool[start : start + size] for start in range(0, len(pool), size)]
    draw.shuffle(found)
    return found


def padded(rows: list[list[int]], device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """Return (ids, labels), labels −100 where there is padding."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [1] * (longest - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
    return ids.to(device), labels.to(device)


def train(
    rows: list[list[int]], recipe: Recipe, save: dict[int, Path], tell: bool = True,
    without: Collection[int] = (), device: torch.device = CPU,
) -> GPT2LMHeadModel:  # fmt: skip
    """Train a decoder on these rows; write a checkpoint after the epochs that ``save`` names.

    Rows left out (``without``) keep their place in the batches and are not shown: the rest is trained on as before.
    """
    model, draw = decoder(recipe).to(device).train(), random.Random(recipe.seed)
    groups = [{"params": [p for p in model.parameters() if (p.ndim > 1) is matrix], "weight_decay": recipe.decay * matrix}
              for matrix in (True, False)]  # fmt: skip
    optimiser = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))
    lengths = [len(row) for row in rows]
    summed = torch.zeros((), device=device)
    per_epoch = math.ceil(len(rows) / recipe.batch)
    total, step, began = per_epoch * recipe.epochs, 0, time.perf_counter()
    for epoch in range(1, recipe.epochs + 1):
        counted = 0
        summed.zero_()
        for piece in batches(lengths, recipe.batch, draw):
            rate = min(1.0, (step + 1) / recipe.warmup) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / total)))
            for group in optimiser.param_groups:
                group["lr"] = recipe.lr * rate
            step += 1
            piece = [row for row in piece if row not in without]
            if not piece:
                continue
            ids, labels = padded([rows[row] for row in piece], device)
            logits = model(input_ids=ids, use_cache=False).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            summed += loss.detach() * len(piece)  # not asked for at every step: a GPU would wait
            counted += len(piece)
        if tell:
            say(f"epoch {epoch}: loss {float(summed) / counted:.3f}, {time.perf_counter() - began:.0f} s")
        if epoch in save:
            save_tensors(save[epoch], dict(model.named_parameters()))
    return model.eval()


@dataclass
class Trained:
    """A decoder with its tokenizer, the texts it was trained on, and its checkpoints (the last is the model)."""

    model: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast
    texts: list[str]
    checkpoints: list[dict[str, Tensor]]
    name: str


def trained(
    recipe: Recipe | None = None, texts: list[str] | None = None, tokenizer: Any = None, device: torch.device = CPU
) -> Trained:
    """Return the decoder, from the cache or trained now."""
    recipe = recipe or Recipe()
    texts = corpus() if texts is None else texts
    tokenizer = tokenizer or tokenizer_of(texts, recipe)
    name = digest(str(recipe), texts)[:16]
    folder = machine.cache_folder() / "webnlg" / name
    save = {epoch: folder / f"epoch-{epoch}.safetensors" for epoch in recipe.kept}
    if not all(path.is_file() for path in save.values()):
        train(rows_of(tokenizer, texts), recipe, save, device=device)
    kept = [load_file(path) for path in save.values()]
    model = decoder(recipe).to(device)
    put(model, kept[-1])
    return Trained(model.eval(), tokenizer, texts, kept, name)


def put(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put a checkpoint into a model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def log_probabilities(model: Any, tokenizer: Any, asked: Sequence[Question]) -> tuple[list[float], list[bool]]:
    """Return log p(answer | prompt) of each fact, and whether every token is what the model would say."""
    found, right = [], []
    with torch.no_grad():
        for q in asked:
            row = answer_row(tokenizer, q.prompt, q.answer, None, False)
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
            told = model(input_ids=ids.to(model.device)).logits[0, :-1].double().log_softmax(1).cpu()
            counted = labels != -100
            found.append(float(told[counted].gather(1, labels[counted, None]).sum()))
            right.append(bool((told.argmax(1) == labels)[counted].all()))
    return found, right
