"""Which attacks are made on which models and shown to whom: transfer, oblivious, adaptive."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from advjax.data import Dataset
from advjax.evaluation import summaries
from advjax.evaluation.attack_runs import AttackRun, NamedAttack, Resources, inside_threat_model, run_attack
from advjax.evaluation.attacker_knowledge import EVERYTHING
from advjax.evaluation.outcomes import Outcome
from advjax.evaluation.scored_model import NO_DEFENSE, ScoredModel
from advjax.evaluation.scoring import attacked_outcome
from advjax.experiment.spec import EvaluationPlan


@dataclasses.dataclass
class Measured:
    """Everything that an evaluation has measured, in its order."""

    outcomes: list[Outcome]
    shown: list[tuple[AttackRun, list[Outcome]]] = dataclasses.field(default_factory=list)
    """Each attack run with the outcomes on its images."""

    @property
    def runs(self) -> list[AttackRun]:
        return [run for run, _ in self.shown]

    @property
    def adaptive(self) -> list[tuple[AttackRun, Outcome]]:
        """Attack runs on each model itself, with its outcome."""
        return [(run, seen[0]) for run, seen in self.shown if run.is_verdict]


def measure(
    plan: EvaluationPlan,
    models: Sequence[ScoredModel],
    clean: Mapping[str, Outcome],
    test: Dataset,
    resources: Resources,
) -> Measured:
    """Runs every attack of the plan and shows its images to every model that is to see them.

    Args:
      plan: what to measure.
      models: all runs without a defense, then those with one.
      clean: outcome of each model on the clean images, by its name.
      test: the images.
      resources: devices, seed and store.

    Raises:
      PreemptedError: asked to stop; what has been done is in the store.
    """
    matrix, measured = _Matrix(plan, clean, test, resources), Measured(list(clean.values()))
    by_name = {model.name: model for model in models}
    sources = dict.fromkeys([*plan.made_on, *(defense.run for defense in plan.defenses)])
    for attack in plan.attacks:
        labels, protocol = plan.transfer_rules(attack.name)
        if attack.is_noise:
            matrix.show(matrix.transfer(by_name[plan.made_on[0]], attack, "true", protocol), models, measured)
            continue
        for source in sources:
            if seeing := _seeing(models, by_name[source], plan, covered=(labels, protocol) == ("true", "sound")):
                matrix.show(matrix.transfer(by_name[source], attack, labels, protocol), seeing, measured)
        for model in models:
            matrix.show(matrix.verdict(model, attack), [model], measured)
    for model in models:
        if model.is_stochastic:
            _with_more_samples(model, matrix, measured)
    measured.outcomes.extend(summaries.worst_cases(measured.outcomes))
    return measured


def _seeing(
    models: Sequence[ScoredModel], source: ScoredModel, plan: EvaluationPlan, covered: bool
) -> list[ScoredModel]:
    """The models that see an attack made on ``source``.

    One that was made on a defended model is seen by that model alone.  The source itself does not see what its own
    verdict says as well (``covered``).
    """
    if source.defense != NO_DEFENSE:
        return [] if covered else [source]
    transferred = source.name in plan.made_on
    seeing = [model for model in models if transferred or (model.defense != NO_DEFENSE and model.run == source.run)]
    return [model for model in seeing if not (covered and model.name == source.name)]


def _with_more_samples(model: ScoredModel, matrix: "_Matrix", measured: Measured) -> None:
    """The strongest white-box attack on a stochastic model once more, with twice the draws for each gradient."""
    own = [entry for entry in measured.outcomes if (entry.run, entry.defense) == (model.run, model.defense)]
    white_box = [entry for entry in own if entry.knowledge == EVERYTHING and entry.epsilon is not None]
    if not white_box:
        return
    strongest = min(white_box, key=lambda entry: np.mean(np.asarray(entry.predictions) == entry.labels))
    attack = next(attack for attack in matrix.plan.attacks if attack.name == strongest.attack)
    doubled = model._replace(num_samples=2 * model.num_samples)
    run = matrix.verdict(doubled, attack)
    measured.outcomes.append(attacked_outcome(doubled, run, matrix.test, matrix.resources))


@dataclasses.dataclass(frozen=True)
class _Matrix:
    """Runs attacks on models."""

    plan: EvaluationPlan
    clean: Mapping[str, Outcome]
    test: Dataset
    resources: Resources
    finished: dict[str, AttackRun] = dataclasses.field(default_factory=dict)

    def verdict(self, model: ScoredModel, attack: NamedAttack) -> AttackRun:
        """The attack on the model itself, with the true labels: each image until the first success."""
        return self._run(model, attack, "true", "sound", survivors_only=True)

    def transfer(self, source: ScoredModel, attack: NamedAttack, labels: str, protocol: str) -> AttackRun:
        """The attack on another model's behalf: every image gets the whole of it."""
        return self._run(source, attack, labels, protocol, survivors_only=False)

    def show(self, run: AttackRun, models: Sequence[ScoredModel], measured: Measured) -> None:
        """Adds the outcomes of the models on the images of a run."""
        seen = [attacked_outcome(model, run, self.test, self.resources) for model in models]
        measured.outcomes.extend(seen)
        measured.shown.append((run, seen))

    def _run(
        self, source: ScoredModel, attack: NamedAttack, labels: str, protocol: str, survivors_only: bool
    ) -> AttackRun:
        # An ensemble leaves every image at its first success in any case: verdict and transfer set are the same.
        whole = not survivors_only and not attack.is_ensemble
        name = _store_name(source, attack, labels, whole, self.resources, self.test)
        if name in self.finished:
            return self.finished[name]._replace(protocol=protocol, is_verdict=survivors_only)
        dataset = self.test if labels == "true" else self.test._replace(labels=self.clean[source.name].predictions)
        draws = f", {source.num_samples} draws" if source.is_stochastic else ""
        purpose = "" if survivors_only or attack.is_noise else " (transfer)"
        title = f"{attack.name} on {source.name}{draws}{purpose}"
        result = run_attack(
            source, attack, dataset, self.resources, survivors_only=survivors_only, title=title, name=name
        )
        inside = inside_threat_model(attack, self.test, result.images, self.resources.batch_size)
        run = AttackRun(source, attack, labels, protocol, survivors_only, result, inside)
        if attack.is_ensemble:
            self.finished[name] = run
        return run


def _store_name(
    source: ScoredModel, attack: NamedAttack, labels: str, whole: bool, resources: Resources, test: Dataset
) -> str:
    """Names the store of a run by all that decides its result, so that a changed plan never meets an old store."""
    facts = [attack.name, attack.identity, labels, whole, source.name, source.hash, source.defense_identity]
    facts += [source.num_samples, resources.seed, resources.batch_size]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for array in (test.images, test.labels, test.index):
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"{attack.name}.{source.name}.{labels}.{digest.hexdigest()[:8]}"
