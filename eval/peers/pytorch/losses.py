"""The three training losses as functions of model, tokens and every random number; names as in eval/golden."""

import torch
import torch.nn.functional as F

DROPOUT = 0.15


def autoencoder_loss(model, ids_BT, eps, token_mask=None, latent_mask=None, kl_weight=1e-3, kl_clamp=0.5):
    """K·cross-entropy + kl_weight·clipped KL. Masks: kept tokens [B, T] in {0, 1}, scaled dropout of the latents."""
    mean, log_std = model.encoder(ids_BT if token_mask is None else ids_BT * token_mask)
    z = mean + eps * torch.exp(log_std)
    logits = model.decoder(z if latent_mask is None else z * latent_mask).flatten(1, 2)
    ce = F.cross_entropy(logits.flatten(0, 1).float(), ids_BT.flatten())
    kl_elements = 0.5 * (mean.square() + torch.exp(log_std).square() - 1 - 2 * log_std)
    kl = torch.clamp(kl_elements, min=kl_clamp).sum(-1).mean()
    total = ce * model.encoder.chunk + kl_weight * kl
    return total, dict(mean=mean, log_std=log_std, z=z, logits=logits, ce=ce, kl=kl, kl_elements=kl_elements)


def calm_loss(model, ids_BT, noise, eps, energy, shared, alpha, row_mask=None):
    """Mean energy loss over positions: chunks 0..P−2 go in, chunks 1..P−1 are encoded by the frozen autoencoder.

    noise [N, R, noise], eps [M, R, L]; row_mask [B, P−1] keeps positions (all without it), R of them.
    """
    k = model.chunk
    inputs = model.embed(ids_BT[:, :-k])
    hidden = model.transformer(inputs)[0]
    with torch.no_grad():
        mean, log_std = model.ae_model.encoder(ids_BT[:, k:])
    rows, mean, log_std = (
        t.flatten(0, 1) if row_mask is None else t[row_mask.bool()] for t in (hidden, mean, log_std)
    )
    x = model.mlp_generator(rows, noise, shared)
    per_row = energy(x, mean, log_std, eps, alpha)
    loss = per_row.mean()
    return loss, dict(
        embed_proj=inputs,
        hidden_states=hidden,
        target_mean=mean,
        target_log_std=log_std,
        latent_predictions=x,
        energy_score=-per_row,
    )


def baseline_loss(model, ids_BT):
    """Mean cross-entropy of the next token."""
    hidden = model.model(model.model.embed_tokens(ids_BT[:, :-1]))[0]
    logits = model.lm_head(hidden)
    return F.cross_entropy(logits.flatten(0, 1).float(), ids_BT[:, 1:].flatten()), dict(logits=logits)


def draw_tokens(model, hidden, noise, shared):
    """One chunk a noise vector: [R, D], [N, R, noise] -> tokens [N, R, K]."""
    return model.ae_model.decoder(model.mlp_generator(hidden, noise, shared)).argmax(-1)
