"""AutoAttack, and a short ensemble for everyday use, as lists of stages (Croce & Hein 2020)."""

from advjax.attacks.auto_pgd import auto_pgd
from advjax.attacks.combine import Stage, all_rounds, made_of, restarts, targets, worst_of
from advjax.attacks.eot import Expectation
from advjax.attacks.fab import fab
from advjax.attacks.square import square
from advjax.attacks.threat_model import ThreatModel, require
from advjax.types import Array, AttackFn, AttackResult, Key, LogitsFn

VERSIONS = ("standard", "plus", "rand")


def auto_attack_stages(threat_model: ThreatModel, *, version: str = "standard") -> tuple[Stage, ...]:
    """The attacks of AutoAttack, in order, each for the images that the previous ones left robust.

    ``standard``: APGD-CE, then APGD-T and FAB-T with 9 targets each, then Square with 5,000 queries.  ``plus``: APGD-CE
    and APGD-DLR and FAB five times each, Square, APGD-T, FAB-T.  ``rand``: APGD-CE and APGD-DLR, for the
    ``expectation`` of a stochastic model over 20 draws.  All gradient attacks make 100 steps.  Parameters and verdicts
    are those of the authors' implementation (Croce & Hein 2020).  With fewer than 10 classes there are fewer targets.

    Args:
      threat_model: linf or l2 with a finite epsilon.
      version: one of ``VERSIONS``.
    """
    if version not in VERSIONS:
        raise ValueError(f"version must be one of {', '.join(VERSIONS)}, got {version!r}")
    require(threat_model, "auto_attack", "linf", "l2", finite_epsilon=True)
    ce, dlr = (auto_pgd(threat_model, loss=loss) for loss in ("ce", "dlr"))
    query = restarts("square", square(threat_model), 1)
    targeted = (
        targets("apgd-t", lambda aim: auto_pgd(threat_model, loss="dlr", aim=aim), 9),
        targets("fab-t", lambda aim: fab(threat_model, aim=aim), 9),
    )
    if version == "standard":
        return restarts("apgd-ce", ce, 1), *targeted, query
    if version == "rand":
        return restarts("apgd-ce", ce, 1), restarts("apgd-dlr", dlr, 1)
    return (
        restarts("apgd-ce", ce, 5),
        restarts("apgd-dlr", dlr, 5),
        restarts("fab", fab(threat_model), 1),
        restarts("fab-restarts", fab(threat_model, random_start=True), 4),
        query,
        *targeted,
    )


def quick_check_stages(threat_model: ThreatModel) -> tuple[Stage, ...]:
    """A short ensemble to check quickly whether a change helped: an eighth of the work of AutoAttack.

    APGD-CE with 50 steps for the images that are easy to break; APGD-T with 100 steps towards each of the 4 most likely
    other classes for the rest; and 300 queries of Square, which can succeed where gradients do not help.  FAB-T, with
    its search for the smallest perturbation, is left out.

    This is not AutoAttack and must not be reported as such.  The resulting accuracy is only an upper bound of the
    accuracy under AutoAttack.  The two are equal on the networks of docs/benchmarks.md, and likely to differ where
    gradients are uninformative, or where the adversarial class is one of the less likely of many classes.

    Args:
      threat_model: linf or l2 with a finite epsilon.
    """
    require(threat_model, "quick_check", "linf", "l2", finite_epsilon=True)
    return (
        restarts("apgd-ce", auto_pgd(threat_model, num_steps=50), 1),
        targets("apgd-t", lambda aim: auto_pgd(threat_model, num_steps=100, loss="dlr", aim=aim), 4),
        restarts("square", square(threat_model, num_queries=300), 1),
    )


def auto_attack(threat_model: ThreatModel, *, version: str = "standard") -> AttackFn:
    """AutoAttack as one attack on one batch; see ``auto_attack_stages`` for the attacks that it runs.

    Every step evaluates the whole batch, however few images are still robust.  For a whole data set use ``run_stages``,
    which continues with the survivors only.  Unlike that of other attacks, its ``until_success`` is true by default.

    Example::

        result = jax.jit(functools.partial(auto_attack(linf(8 / 255)), logits_fn))(images, labels, jax.random.key(0))
    """
    ensemble = worst_of(*(all_rounds(stage) for stage in auto_attack_stages(threat_model, version=version)))

    def attack(
        logits_fn: LogitsFn | Expectation,
        images: Array,
        labels: Array,
        rng: Key,
        start: Array | None = None,
        until_success: bool = True,
    ) -> AttackResult:
        return ensemble(logits_fn, images, labels, rng, start, until_success)

    return made_of(attack, ensemble)
