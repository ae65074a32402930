"""Real architectures, tiny and untrained: their gradients must be autograd's, in whichever layout they like their examples.

Each builder returns (model, rows, task).
"""

import warnings
from functools import cache

import torch
from torch import nn

import forwardinf as fi

N = 21
TEXT = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
END = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def ids(longest=9):
    """Return texts of several lengths."""
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(3, 40, (4 + n % (longest - 3),), generator=draw) for n in range(N)]


def labelled(name="input_ids", rows=None, classes=3):
    rows = ids() if rows is None else rows
    return [{name: row, "labels": torch.tensor(n % classes)} for n, row in enumerate(rows)]


def pictures(size, channels=3):
    return torch.randn(N, channels, size, size, generator=torch.Generator().manual_seed(4))


def text_classifier(name, **settings):
    import transformers

    config = getattr(transformers, f"{name}Config")(**{**TEXT, **END, "num_labels": 3, **settings})
    return getattr(transformers, f"{name}ForSequenceClassification")(config), labelled(), fi.SequenceClassification()


def decoder(name, kind="ForCausalLM", **settings):
    import transformers

    config = getattr(transformers, f"{name}Config")(**{**TEXT, **END, **settings})
    return getattr(transformers, f"{name}{kind}")(config), ids(), fi.CausalLM()


def encoder_decoder(name, **settings):
    import transformers

    config = getattr(transformers, f"{name}Config")(
        **{**END, "vocab_size": 40, "decoder_start_token_id": 2, **settings}
    )
    rows = [{"input_ids": row, "labels": row[:3]} for row in ids()]
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), rows, fi.Seq2Seq()


def image_classifier(name, size=32, **settings):
    import transformers

    config = getattr(transformers, f"{name}Config")(**{"num_labels": 3, **settings})
    return (getattr(transformers, f"{name}ForImageClassification")(config), labelled("pixel_values", pictures(size)),
            fi.Classification())  # fmt: skip


class TimeMajor(nn.Module):
    """Torch's own sequence modules as they come: sequences first."""

    def __init__(self, body):
        super().__init__()
        self.embed, self.body, self.out = nn.Embedding(40, 16), body, nn.Linear(16, 3)

    def forward(self, tokens):
        found = self.body(self.embed(tokens).transpose(0, 1))
        return self.out((found[0] if isinstance(found, tuple) else found).mean(0))


class Translator(nn.Module):
    """nn.Transformer, sequences first, the target a learned query."""

    def __init__(self):
        super().__init__()
        self.embed, self.query = nn.Embedding(40, 16), nn.Parameter(torch.randn(2, 1, 16))
        self.body = nn.Transformer(16, 2, 1, 1, 24, 0.0)
        self.out = nn.Linear(16, 3)

    def forward(self, tokens):
        source = self.embed(tokens).transpose(0, 1)
        return self.out(self.body(source, self.query.expand(-1, len(tokens), -1)).mean(0))


def time_major(body):
    tokens = torch.randint(0, 40, (N, 6), generator=torch.Generator().manual_seed(5))
    model = body if isinstance(body, Translator) else TimeMajor(body)
    return model, (tokens, torch.arange(N) % 3), fi.Classification()


class Sets(nn.Module):
    """A set network (deep sets): every element through the same layers, then a sum."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8)), nn.Linear(8, 3)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x.flatten(0, 1))).view(*x.shape[:2], 8).sum(1))


class Crops(nn.Module):
    """Three crops of every picture, each through the same convolutions, their logits averaged."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        crops = torch.stack([x[..., :6, :6], x[..., 2:, 2:], x[..., 1:7, 1:7]], 1).flatten(0, 1)
        return self.out(torch.relu(self.conv(crops)).mean((2, 3))).view(len(x), 3, 3).mean(1)


class Last(nn.Module):
    """Puts out (T, B, C), as recurrent taggers do."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(40, 8), nn.Linear(8, 3)

    def forward(self, tokens):
        return self.out(torch.tanh(self.embed(tokens.T)))


def denoiser():
    import diffusers

    model = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16),
        norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100)
    return model, pictures(8, 1), fi.Diffusion(scheduler, timesteps=2)


def transformer_denoiser():
    import diffusers

    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=2, out_channels=2, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=100,
    )  # fmt: skip

    def loss(model, batch):
        x, label = batch
        at = torch.full((len(x),), 10, device=x.device)
        return (model(x, at, class_labels=label).sample - x).square().mean((1, 2, 3))

    return model, (pictures(8, 2), torch.arange(N) % 7), loss


T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32}  # fmt: skip
PATCHED = {"image_size": 32, "patch_size": 8, **{name: TEXT[name] for name in list(TEXT)[1:]}}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4}
KEYS = {"num_key_value_heads": 1, "head_dim": 8}

ARCHITECTURES = {
    "BERT": lambda: text_classifier("Bert"),
    "RoBERTa": lambda: text_classifier("Roberta", max_position_embeddings=40),
    "DistilBERT": lambda: text_classifier("DistilBert", dim=16, hidden_dim=24, n_layers=1, n_heads=2),
    "ALBERT": lambda: text_classifier("Albert", embedding_size=8),
    "DeBERTa v2": lambda: text_classifier(
        "DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=4, max_position_embeddings=16,
        position_biased_input=False,
    ),
    "ELECTRA": lambda: text_classifier("Electra", embedding_size=8),
    "MPNet": lambda: text_classifier("MPNet"),
    "GPT-2": lambda: decoder("GPT2", "LMHeadModel", n_embd=16, n_layer=1, n_head=2, n_positions=16),
    "GPT-NeoX": lambda: decoder("GPTNeoX"),
    "Llama": lambda: decoder("Llama", **KEYS),
    "Mistral": lambda: decoder("Mistral", **KEYS),
    "Qwen 2": lambda: decoder("Qwen2", num_key_value_heads=1),
    "Qwen 3": lambda: decoder("Qwen3", **KEYS),
    "Gemma": lambda: decoder("Gemma", **KEYS),
    "Phi": lambda: decoder("Phi"),
    "Falcon": lambda: decoder("Falcon", num_kv_heads=1, multi_query=True),
    "BLOOM": lambda: decoder("Bloom", n_head=2, n_layer=1),
    "OPT": lambda: decoder("OPT", ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=16),
    "Mixtral": lambda: decoder("Mixtral", num_local_experts=3, num_experts_per_tok=1, **KEYS),
    "Mamba": lambda: decoder("Mamba", state_size=4, num_hidden_layers=1, expand=2, time_step_rank=2),
    "T5": lambda: encoder_decoder("T5", **T5),
    "BART": lambda: encoder_decoder("Bart", **BART),
    "ViT": lambda: image_classifier("ViT", **PATCHED),
    "DINOv2": lambda: image_classifier("Dinov2", **PATCHED),
    "Swin": lambda: image_classifier("Swin", **SWIN),
    "Swin v2": lambda: image_classifier("Swinv2", **SWIN),
    "BEiT": lambda: image_classifier("Beit", use_relative_position_bias=True, use_shared_relative_position_bias=False, **PATCHED),
    "PVT": lambda: image_classifier(
        "Pvt", image_size=32, num_encoder_blocks=2, depths=[1, 1], sequence_reduction_ratios=[2, 1], hidden_sizes=[8, 16],
        patch_sizes=[4, 2], strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
    ),
    "ConvNeXt": lambda: image_classifier("ConvNext", num_stages=2, hidden_sizes=[8, 16], depths=[1, 1]),
    "ResNet": lambda: image_classifier("ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "MobileNet v2": lambda: image_classifier("MobileNetV2", depth_multiplier=0.25, min_depth=4, depth_divisible_by=4),
    "nn.TransformerEncoder": lambda: time_major(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, 0.0), 1, enable_nested_tensor=False)
    ),
    "nn.Transformer": lambda: time_major(Translator()),
    "nn.LSTM": lambda: time_major(nn.LSTM(16, 16)),
    "nn.GRU": lambda: time_major(nn.GRU(16, 16)),
    "nn.RNN": lambda: time_major(nn.RNN(16, 16)),
    "deep sets": lambda: (Sets(), (torch.randn(N, 7, 4), torch.arange(N) % 3), fi.Classification()),
    "several crops": lambda: (Crops(), (pictures(8), torch.arange(N) % 3), fi.Classification()),
    "(T, B, C) outputs": lambda: (
        Last(), (torch.randint(0, 40, (N, 6)), torch.arange(N) % 3),
        fi.Classification(logits=lambda output: output.mean(0)),
    ),
    "UNet2DModel": denoiser,
    "DiTTransformer2DModel": transformer_denoiser,
}  # fmt: skip


@cache
def built(name):
    """Return (model, rows, task) of an architecture, in eval mode, its weights away from where they start."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model, rows, task = ARCHITECTURES[name]()
        for parameter in model.parameters():  # zeros and ones hide mistakes
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval(), rows, task
