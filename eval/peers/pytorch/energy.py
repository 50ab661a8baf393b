"""The energy loss of a position, [R], two ways.

    loss = 2/(NM) ΣΣ ‖x_n − z_m‖^α − 1/(N(N−1)) Σ_{n≠k} ‖x_n − x_k‖^α,   z_m = mean + ε_m·exp(log_std)

x [N, R, L], mean and log_std [R, L], eps [M, R, L]. N samples, M targets. Distances are in float32 when x is bfloat16.
"""

import torch


def energy_eager(x, mean, log_std, eps, alpha):
    """As the formula is usually written: all differences in memory, N·N·R·L and N·M·R·L numbers.

    The n = k pairs are among them: at α < 1 their gradient is NaN (the reference's, too).
    """
    n, x = x.shape[0], x.float()
    z = mean + eps * torch.exp(log_std)
    between = torch.norm(x.unsqueeze(1) - x.unsqueeze(0), p=2, dim=-1).pow(alpha)
    to_targets = torch.norm(x.unsqueeze(1) - z.unsqueeze(0), p=2, dim=-1).pow(alpha)
    return 2 * to_targets.mean(dim=(0, 1)) - between.sum(dim=(0, 1)) / (n * (n - 1))


def power(value, exponent):
    """value^exponent of numbers >= 0, with value and gradient 0 at 0."""
    apart = value > 0
    safe = torch.where(apart, value, 1.0)
    return torch.where(apart, safe.sqrt() if exponent == 0.5 else safe.pow(exponent), 0.0)


def energy_tuned(x, mean, log_std, eps, alpha):
    """No N·M·R·L buffer: ‖x − z‖² from a matrix product, the distances between samples from a fused kernel.

    Coordinates are centred at the posterior's mean. There the targets are σ·ε, independent of the samples, so
    ‖x‖² + ‖z‖² − 2xz does not cancel, as it would at coincident points. Samples may coincide (they do at step 0), so
    their distances come from differences.
    """
    n, x = x.shape[0], x.float()
    centred = (x - mean).transpose(0, 1)  # [R, N, L]
    offset = (eps * torch.exp(log_std)).transpose(0, 1)  # [R, M, L]
    square = (
        centred.square().sum(-1).unsqueeze(2)
        + offset.square().sum(-1).unsqueeze(1)
        - 2 * torch.bmm(centred, offset.transpose(1, 2))
    )
    to_targets = power(square, alpha / 2)  # [R, N, M]; a square that rounds below 0 counts as 0
    rows = x.transpose(0, 1).contiguous()
    if x.is_cuda:  # one fused kernel; the gradient of cdist has a buffer of N·N·R·L numbers there
        between = power((rows.unsqueeze(1) - rows.unsqueeze(2)).square().sum(-1).flatten(1), alpha / 2)  # [R, N·N]
    else:
        # Not x[i] - x[j] over pairs: inductor of 2.5.1 on the CPU gets the gradient of that gather wrong.
        between = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").flatten(1)
        between = between if alpha == 1.0 else power(between, alpha)
    return 2 * to_targets.mean(dim=(1, 2)) - between.sum(1) / (n * (n - 1))
