"""Tiny language models of each kind, random, their weights large enough that outputs are far from uniform; and their texts."""

import copy
from functools import cache

import pytest
import torch

transformers = pytest.importorskip("transformers")

V, EOS = 23, 2
TOKENS = {"bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": 0}


def llama(**more):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, **TOKENS, **more,
    ))  # fmt: skip


def gpt2(**more):
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=32, **TOKENS, **more
    ))  # fmt: skip


def t5():
    return transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=V, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0, **TOKENS
    ))  # fmt: skip


def bart():
    return transformers.BartForConditionalGeneration(transformers.BartConfig(
        vocab_size=V, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32, decoder_start_token_id=EOS,
        forced_eos_token_id=None, **TOKENS,
    ))  # fmt: skip


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=3,
        max_position_embeddings=32, **TOKENS,
    ))  # fmt: skip


def distilbert():
    return transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(
        vocab_size=V, dim=16, n_layers=2, n_heads=2, hidden_dim=24, num_labels=3, max_position_embeddings=32, **TOKENS
    ))  # fmt: skip


def tagger():
    return transformers.BertForTokenClassification(transformers.BertConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=4,
        max_position_embeddings=32, **TOKENS,
    ))  # fmt: skip


BUILD = {make.__name__: make for make in (llama, gpt2, t5, bart, bert, distilbert, tagger)}


@cache
def _built(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BUILD[name]()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.25)
    return model.eval()


def make(name):
    """Return a fresh copy of a model."""
    return copy.deepcopy(_built(name))


def texts(rows, shortest=3, longest=9, seed=0):
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.randint(shortest, longest + 1, (rows,), generator=draw).tolist()
    return [torch.randint(3, V, (size,), generator=draw) for size in sizes]


def read(task, model, batch):
    with torch.no_grad():
        return task.loss(model, batch)
