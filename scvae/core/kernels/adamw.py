r"""Compiled CPU kernel: one step of AdamW on all parameters, in one pass over their memory.

.. math::
    m &\leftarrow m + (1 - \beta_1)(g - m), \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
    \theta &\leftarrow (1 - \eta\lambda)\,\theta
        - \frac{\eta}{1 - \beta_1^t} \frac{m}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.
"""

from __future__ import annotations

import numpy as np

from scvae.core.kernels.arithmetic import exact, f32
from scvae.core.kernels.team import claim, entry, matrix, opened

OF_ALL = 1  # matrices before those of the parameters


@exact
def updated(p, g, m, v, settings):  # type: ignore[no-untyped-def]
    """Update the entries p of a parameter and their moments m and v, at the gradients g.

    `settings` are the rate over 1 - beta_1^t, 1 - beta_1, beta_2, 1 - beta_2, epsilon, the square
    root of 1 - beta_2^t, and 1 minus rate times weight decay.
    """
    rate, new_m, keep_v, new_v = settings[0], settings[1], settings[2], settings[3]
    epsilon, of_root, keep = settings[4], f32(1.0) / settings[5], settings[6]
    for j in range(p.shape[0]):
        m[j] += new_m * (g[j] - m[j])
        v[j] = keep_v * v[j] + new_v * g[j] * g[j]
        p[j] = keep * p[j] - rate * m[j] / (np.sqrt(v[j]) * of_root + epsilon)


@entry
def adamw(pointer):  # type: ignore[no-untyped-def]
    """Run `updated` on entries ``[start, stop)`` of all parameters, laid end to end.

    The matrices are the settings of every parameter ``(k, 7)``, then p, g, m, v of each,
    ``(1, entries)``.
    """
    table = opened(pointer)
    settings = matrix(table, 0)
    start, stop = claim(table)
    while start < stop:
        before = 0
        for k in range(settings.shape[0]):
            first = OF_ALL + 4 * k
            p, g = matrix(table, first)[0], matrix(table, first + 1)[0]
            m, v = matrix(table, first + 2)[0], matrix(table, first + 3)[0]
            low, high = max(start - before, 0), min(stop - before, p.shape[0])
            if low < high:
                updated(p[low:high], g[low:high], m[low:high], v[low:high], settings[k])
            before += p.shape[0]
        start, stop = claim(table)
