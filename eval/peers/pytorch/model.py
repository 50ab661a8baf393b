"""The models: chunk autoencoder, Llama backbone, CALM with its energy head, discrete baseline.

Both peers share the modules, so that they hold the same parameters under the names of the golden weights
(eval/golden); what differs between the peers is passed in. Shapes: B rows, S chunks, K tokens a chunk, L latent,
D hidden, N samples, R positions, V vocabulary. eval/golden/README.md has the formulas.
"""

import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-6


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        wide = x.float()  # the mean of squares in float32, whatever x is
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)


class SwiGLU(nn.Module):
    def __init__(self, width, intermediate):
        super().__init__()
        self.gate_proj = nn.Linear(width, intermediate, bias=False)
        self.up_proj = nn.Linear(width, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


# ---------------------------------------------------------------- autoencoder


class Block(nn.Module):
    def __init__(self, width, intermediate):
        super().__init__()
        self.mlp = SwiGLU(width, intermediate)
        self.layernorm = RMSNorm(width)

    def forward(self, x):
        return x + self.mlp(self.layernorm(x))


class Encoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c["hidden"]
        self.chunk = c["chunk_size"]
        self.embed_tokens = nn.Embedding(c["vocab"], d)
        self.encoder_layers = nn.ModuleList(Block(d, c["intermediate"]) for _ in range(c["encoder_layers"]))
        self.squeeze_layer = nn.Linear(self.chunk * d, d)
        self.norm = RMSNorm(d)
        self.hidden_to_latent = nn.Linear(d, 2 * c["latent"])

    def forward(self, ids_BT):
        """[B, S·K] ids -> mean and log_std [B, S, L]."""
        x = self.embed_tokens(ids_BT)
        half = len(self.encoder_layers) // 2
        for layer in self.encoder_layers[:half]:
            x = layer(x)
        x = self.squeeze_layer(x.reshape(x.shape[0], -1, self.chunk * x.shape[-1]))
        for layer in self.encoder_layers[half:]:
            x = layer(x)
        return self.hidden_to_latent(self.norm(x)).float().chunk(2, dim=-1)


class Decoder(nn.Module):
    def __init__(self, c, embedding):
        super().__init__()
        d = c["hidden"]
        self.chunk = c["chunk_size"]
        self.latent_to_hidden = nn.Linear(c["latent"], d)
        self.decoder_layers = nn.ModuleList(Block(d, c["intermediate"]) for _ in range(c["decoder_layers"]))
        self.expand_layer = nn.Linear(d, self.chunk * d)
        self.norm = RMSNorm(d)
        self.lm_head_weight = embedding

    def forward(self, z):
        """[..., L] latents -> logits [..., K, V]."""
        x = self.latent_to_hidden(z.to(self.lm_head_weight.dtype))
        half = len(self.decoder_layers) // 2
        for layer in self.decoder_layers[:half]:
            x = layer(x)
        x = self.expand_layer(x).unflatten(-1, (self.chunk, -1))
        for layer in self.decoder_layers[half:]:
            x = layer(x)
        return F.linear(self.norm(x), self.lm_head_weight)


class Autoencoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.encoder = Encoder(c)
        self.decoder = Decoder(c, self.encoder.embed_tokens.weight)


# ---------------------------------------------------------------- backbone


def rope_tables(width, length, theta=1e4, device=None):
    """cos and sin [length, width], the half table repeated twice."""
    frequency = theta ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    angle = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequency)
    return torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, self.heads, self.kv_heads = c["hidden"], c["heads"], c["kv_heads"]
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, d // self.heads * self.kv_heads, bias=False)
        self.v_proj = nn.Linear(d, d // self.heads * self.kv_heads, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)

    def qkv(self, x, cos, sin):
        """Rotated queries and keys, values: [B, heads, T, d]; shared keys and values repeated."""
        q, k, v = (
            p(x).unflatten(-1, (h, -1)).transpose(1, 2)
            for p, h in ((self.q_proj, self.heads), (self.k_proj, self.kv_heads), (self.v_proj, self.kv_heads))
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.kv_heads != self.heads:
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        return q, k, v

    def forward(self, x, cos, sin, past):
        q, k, v = self.qkv(x, cos, sin)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        new, seen = q.shape[2], k.shape[2]
        if past is None or new == 1:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=new > 1)
        else:
            mask = torch.ones(new, seen, dtype=torch.bool, device=x.device).tril(seen - new)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(y.transpose(1, 2).flatten(2)), (k, v)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = SwiGLU(c["hidden"], c["intermediate"])
        self.input_layernorm = RMSNorm(c["hidden"])
        self.post_attention_layernorm = RMSNorm(c["hidden"])

    def forward(self, x, cos, sin, past=None):
        y, present = self.self_attn(self.input_layernorm(x), cos, sin, past)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), present


class Backbone(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab"], c["hidden"], padding_idx=c["pad"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["layers"]))
        self.norm = RMSNorm(c["hidden"])
        self.head_size = c["hidden"] // c["heads"]

    def forward(self, x, cache=None):
        """[B, T, D] inputs -> hidden states [B, T, D] and the cache, a (keys, values) a layer."""
        start = 0 if cache is None else cache[0][0].shape[2]
        cos, sin = rope_tables(self.head_size, start + x.shape[1], device=x.device)
        cos, sin = cos[start:].to(x.dtype), sin[start:].to(x.dtype)
        new = []
        for i, layer in enumerate(self.layers):
            x, present = layer(x, cos, sin, None if cache is None else cache[i])
            new.append(present)
        return self.norm(x), new


# ---------------------------------------------------------------- energy head and language models


class HeadBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.in_ln = nn.LayerNorm(d, eps=EPS)
        self.linears = nn.Sequential(nn.Linear(2 * d, d), nn.SiLU(), nn.Linear(d, d), nn.SiLU(), nn.Linear(d, 2 * d))
        self.down_proj = nn.Linear(d, d)

    def forward(self, x, condition, shared):
        first, d = self.linears[0], x.shape[-1]
        if shared:  # the condition's half of the product once a position, not once a sample
            u = F.linear(self.in_ln(x), first.weight[:, :d]) + F.linear(condition, first.weight[:, d:], first.bias)
        else:
            u = first(torch.cat((self.in_ln(x), condition), -1))
        gate, up = self.linears[1:](u).chunk(2, dim=-1)
        return x + self.down_proj(F.silu(gate) * up)


class FinalLayer(nn.Module):
    def __init__(self, d, latent):
        super().__init__()
        self.in_ln = nn.LayerNorm(d, eps=EPS)
        self.linears = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, latent))

    def forward(self, x):
        return self.linears(self.in_ln(x))


class EnergyHead(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c["hidden"]
        self.noise_embd = nn.Linear(c["noise"], d)
        self.hidden_embd = nn.Linear(d, d)
        self.norm_hidden = nn.LayerNorm(d, eps=EPS)
        self.norm_noise = nn.LayerNorm(d, eps=EPS)
        self.mlp_blocks = nn.ModuleList(HeadBlock(d) for _ in range(c["head_blocks"]))
        self.final_layer = FinalLayer(d, c["latent"])

    def forward(self, hidden, noise, shared):
        """[R, D] hidden states, [N, R, noise] numbers in [-1/2, 1/2) -> latents [N, R, L]."""
        if not shared:
            hidden = hidden.unsqueeze(0).repeat(noise.shape[0], *[1] * hidden.dim())
        condition = self.norm_hidden(self.hidden_embd(hidden))
        x = self.norm_noise(self.noise_embd(noise.to(self.noise_embd.weight.dtype)))
        for block in self.mlp_blocks:
            x = block(x, condition, shared)
        return self.final_layer(x)


class Calm(nn.Module):
    def __init__(self, c, autoencoder):
        super().__init__()
        d, k = c["hidden"], c["chunk_size"]
        self.chunk = k
        self.transformer = Backbone(c)
        self.embed_proj = nn.Sequential(
            nn.Linear(k * d, 2 * d), nn.SiLU(), nn.Linear(2 * d, d), nn.LayerNorm(d, eps=EPS)
        )
        self.mlp_generator = EnergyHead(c)
        self.ae_model = autoencoder.requires_grad_(False)

    def embed(self, ids_BT):
        x = self.transformer.embed_tokens(ids_BT)
        return self.embed_proj(x.reshape(x.shape[0], -1, self.chunk * x.shape[-1]))


class Baseline(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.model = Backbone(c)
        self.lm_head = nn.Linear(c["hidden"], c["vocab"], bias=False)


# ---------------------------------------------------------------- from a size of ../sizes.json


def initialise(model, head=None):
    """Matrices N(0, 0.02), biases 0, PAD row 0; the head's last linear 0."""
    for m in model.modules():
        if isinstance(m, (nn.Linear, nn.Embedding)):
            nn.init.normal_(m.weight, std=0.02)
            if getattr(m, "bias", None) is not None:
                nn.init.zeros_(m.bias)
            if getattr(m, "padding_idx", None) is not None:
                nn.init.zeros_(m.weight[m.padding_idx : m.padding_idx + 1].data)
    if head is not None:
        nn.init.zeros_(head.final_layer.linears[2].weight)
    return model


def autoencoder_of(size, chunk_size=None, latent=None):
    return Autoencoder(
        dict(
            vocab=size["vocab"],
            chunk_size=chunk_size or size["chunk_size"],
            latent=latent or size["latent"],
            hidden=size["ae_hidden"],
            intermediate=size["ae_intermediate"],
            encoder_layers=size["ae_encoder_layers"],
            decoder_layers=size["ae_decoder_layers"],
        )
    )


def calm_of(size, chunk_size=None, latent=None):
    c = dict(size, pad=size["vocab"] - 1, chunk_size=chunk_size or size["chunk_size"], latent=latent or size["latent"])
    model = Calm(c, autoencoder_of(size, c["chunk_size"], c["latent"]))
    return initialise(model, model.mlp_generator)


def baseline_of(size):
    return initialise(Baseline(dict(size, pad=None)))
