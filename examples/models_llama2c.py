"""stories260K: a 260,032-parameter Llama-type language model, its tokenizer, and the same model for transformers.

python examples/models_llama2c.py      decodes the documented sample and measures the loss per token
"""

import json
import re

import torch
from common import data, stories, text
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu

DIM, LAYERS, HEADS, KV_HEADS, HIDDEN, VOCAB, CONTEXT, THETA, EPS = 64, 5, 8, 4, 172, 512, 512, 10000.0, 1e-5
HEAD = DIM // HEADS
BOS, EOS, BYTES = 1, 2, 3  # token 3 + b is the byte b
NAMES = [  # ours, and what transformers calls it
    (r"^tok_embeddings", "model.embed_tokens"),
    (r"^output", "lm_head"),
    (r"^(layers|norm)", r"model.\1"),
    (r"attention_norm", "input_layernorm"),
    (r"ffn_norm", "post_attention_layernorm"),
    (r"attention\.w([qkvo])", r"self_attn.\1_proj"),
    (r"feed_forward\.w1", "mlp.gate_proj"),
    (r"feed_forward\.w2", "mlp.down_proj"),
    (r"feed_forward\.w3", "mlp.up_proj"),
]


class Attention(nn.Module):
    """Causal attention, each key/value head shared by two query heads: (B, T, 64) → (B, T, 64)."""

    def __init__(self):
        super().__init__()
        self.wq = nn.Linear(DIM, HEADS * HEAD, bias=False)
        self.wk = nn.Linear(DIM, KV_HEADS * HEAD, bias=False)
        self.wv = nn.Linear(DIM, KV_HEADS * HEAD, bias=False)
        self.wo = nn.Linear(HEADS * HEAD, DIM, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (w(x).unflatten(-1, (-1, HEAD)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))  # (B, H, T, 8)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (a.repeat_interleave(HEADS // KV_HEADS, dim=1) for a in (k, v))  # (B, 8, T, 8)
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(out.transpose(1, 2).flatten(2))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of neighbours (0, 1), (2, 3), ... by its position's angle; x (B, H, T, 8), cos (T, 4)."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1 = nn.Linear(DIM, HIDDEN, bias=False)
        self.w2 = nn.Linear(HIDDEN, DIM, bias=False)
        self.w3 = nn.Linear(DIM, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention_norm = nn.RMSNorm(DIM, eps=EPS)
        self.attention = Attention()
        self.ffn_norm = nn.RMSNorm(DIM, eps=EPS)
        self.feed_forward = FeedForward()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    """Token ids (B, T) → logits (B, T, 512). The output head and the embedding are one and the same parameter."""

    def __init__(self):
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCAB, DIM)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(DIM, eps=EPS)
        self.output = nn.Linear(DIM, VOCAB, bias=False)
        self.output.weight = self.tok_embeddings.weight
        angles = torch.outer(torch.arange(CONTEXT), THETA ** (-torch.arange(0, HEAD, 2) / HEAD))  # (512, 4)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tok_embeddings(input_ids)  # (B, T, 64)
        cos, sin = self.cos[: x.shape[1]], self.sin[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.output(self.norm(x))


def load() -> Llama:
    """Return the trained model, in eval mode."""
    model = Llama()
    weights = load_file(data("models", "stories260k", "stories260k.safetensors"))
    model.load_state_dict(weights | {"output.weight": weights["tok_embeddings.weight"]}, strict=True)
    return model.eval()


def to_transformers(model: Llama) -> nn.Module:
    """Return the same model as transformers' `LlamaForCausalLM`, which rotates halves where ours rotates neighbours."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=EPS,
        rope_theta=THETA,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    other = LlamaForCausalLM(config)
    state = {}
    for key, value in model.state_dict().items():
        if key.endswith(("wq.weight", "wk.weight")):  # rows 0 1 2 3 4 5 6 7 of a head → 0 2 4 6 1 3 5 7
            value = value.view(-1, HEAD // 2, 2, DIM).transpose(1, 2).reshape(value.shape)
        for ours, theirs in NAMES:
            key = re.sub(ours, theirs, key)
        state[key] = value
    other.load_state_dict(state, strict=True)
    return other.eval()


class Tokenizer:
    """llama2.c's byte-pair tokenizer: of all neighbours that may be joined, join the best-scored first."""

    def __init__(self):
        table = json.loads(data("models", "stories260k", "tok512.json").read_text())["vocab"]  # [piece, score] per id
        self.pieces, self.scores = zip(*table, strict=True)
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}
        self.known: dict[str, list[int]] = {}  # no piece has a space after its first character, so words are separate

    def encode(self, string: str, bos: bool = True) -> list[int]:
        """Return token ids, after BOS if asked for; the text is read as if a space stood before it."""
        words = re.findall(r" [^ ]*", " " + string) if string else []
        return [BOS] * bos + [i for word in words for i in self.word(word)]

    def word(self, word: str) -> list[int]:
        if word not in self.known:
            ids: list[int] = []
            for char in word:
                raw = char.encode()
                piece = self.ids.get(raw.decode("latin-1"))  # the table spells its pieces as latin-1 bytes
                ids += [BYTES + b for b in raw] if piece is None else [piece]
            while pairs := [
                (self.scores[joined], -at, joined)
                for at in range(len(ids) - 1)
                if (joined := self.ids.get(self.pieces[ids[at]] + self.pieces[ids[at + 1]])) is not None
            ]:
                _, at, joined = max(pairs)
                ids[-at : -at + 2] = [joined]
            self.known[word] = ids
        return self.known[word]

    def decode(self, ids: list[int] | Tensor) -> str:
        """Return the text of token ids; BOS and EOS (or padding below 0) show as nothing."""
        ids = [int(i) for i in ids if i > EOS]
        raw = b"".join(bytes([i - BYTES]) if i < BYTES + 256 else self.pieces[i].encode("latin-1") for i in ids)
        return raw.decode("utf-8", errors="replace").removeprefix(" ")


def windows(ids: list[int], length: int) -> Tensor:
    """Cut a long text into rows, each behind a BOS: (N, length); what is left at the end is dropped."""
    rows = torch.tensor(ids[: len(ids) // (length - 1) * (length - 1)]).view(-1, length - 1)
    return torch.cat([torch.full((len(rows), 1), BOS), rows], dim=1)


@torch.no_grad()
def greedy(model: nn.Module, ids: list[int], new: int) -> list[int]:
    """Go on from `ids` with the likeliest token, `new` times or until BOS or EOS."""
    for _ in range(new):
        token = int(model(torch.tensor([ids]))[0, -1].argmax())
        if token in (BOS, EOS):
            break
        ids = [*ids, token]
    return ids


@torch.no_grad()
def loss_per_token(model: nn.Module, rows: Tensor) -> float:
    """Return the mean cross-entropy of rows (N, T), in nats, each token given those before it."""
    found = [cross_entropy(model(r)[:, :-1].transpose(1, 2), r[:, 1:], reduction="none") for r in rows.split(32)]
    return torch.cat(found).mean().item()


if __name__ == "__main__":
    model, tokenizer = load(), Tokenizer()
    print(sum(p.numel() for p in model.parameters()), "parameters;", tokenizer.decode(greedy(model, [BOS], 200)), "\n")
    for name in ("tinystories_train_excerpt", "tinyshakespeare"):
        string = text(name)[:200_000]
        ids = tokenizer.encode(string, bos=False)
        assert tokenizer.decode(ids) == string, "decode must undo encode"
        cut = torch.tensor(ids[: len(ids) // 512 * 512]).view(-1, 512)
        losses = f"{loss_per_token(model, windows(ids, 512)):.3f} behind BOS, {loss_per_token(model, cut):.3f} without"
        print(f"{name}: {len(ids)} tokens; loss per token in windows of 512 {losses}")
    whole = [torch.tensor([tokenizer.encode(story)[:CONTEXT]]) for story in stories()]
    total = sum(loss_per_token(model, story) * (story.shape[1] - 1) for story in whole)
    print(f"whole stories behind BOS: {total / sum(story.shape[1] - 1 for story in whole):.3f}")
    rows = windows(ids, 65)[:8]
    gap = (to_transformers(model)(rows).logits - model(rows)).abs().max().item()
    print(f"largest difference of logits from transformers' Llama with the same weights: {gap:.1e}")
