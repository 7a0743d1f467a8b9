"""MART (Wang et al., 2020): misclassification-aware adversarial training.

    transforms = (perturb(pgd(linf(8 / 255), num_steps=10, step_size=2 / 255, returns="last")),)
    objective = mart(model, boosted_cross_entropy, beta=5)

The published code passes clean and adversarial images through the network separately; here they form one batch, so
BatchNorm sees them together.
"""

import flax.linen as nn
import jax

from advjax.training.losses import Loss, kl_divergence
from advjax.training.objectives import Objective, check_beta, noise_rngs, on_pairs, regularized
from advjax.types import Batch, Key, PyTree, Variables


def mart(model: nn.Module, loss: Loss, *, beta: float = 5.0, noise: bool = True) -> Objective:
    """``loss(f(x'), t) + beta KL(p || p') (1 - <p, t>)`` with p = softmax f(x), p' = softmax f(x') (Wang et al., 2020).

    The divergence counts most for examples that are misclassified when clean. Its weight ``1 - <p, t>``, one minus the
    probability of the label, receives gradients as well, as in the published code.

    Args:
      model: called in train mode, with BatchNorm synchronized over the replicas.
      loss: loss of one example, ``(logits, target distribution) -> scalar``; ``boosted_cross_entropy`` in the paper.
      beta: weight of the divergence, at least 0 (lambda in the paper).
      noise: as in ``supervised``.

    Raises:
      ValueError: ``beta`` is negative.
      UserError: (when applied) the batch has no adversarial images.
    """
    check_beta("mart", beta)

    def objective(params: PyTree, model_state: PyTree, batch: Batch, rng: Key, axis_name: str | None):
        clean_logits, logits, new_state = on_pairs(
            model, Variables(params, model_state), batch, axis_name, noise_rngs(rng, batch, noise)
        )
        divergence = jax.vmap(kl_divergence)(clean_logits, logits)
        weights = 1 - (jax.nn.softmax(clean_logits) * batch.targets).sum(axis=-1)
        values = jax.vmap(loss)(logits, batch.targets) + beta * divergence * weights
        return regularized(values, divergence, clean_logits, logits, batch, axis_name, new_state)

    return objective
