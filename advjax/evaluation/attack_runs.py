"""Attempts on models: adversarial test images, how they came about, and what a model makes of them."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from advjax.data import pixels
from advjax.evaluation.adversarial_sets import allowed
from advjax.evaluation.evaluate import attacker, staged_attacker
from advjax.evaluation.interruption import Adversarial, Interruption
from advjax.evaluation.outcomes import CLEAN, EVERYTHING, NOTHING, OBLIVIOUS, SCORES, TRANSFER, Outcome
from advjax.experiment.spec import Experiment, NamedAttack
from advjax.jobs.judges import Judge
from advjax.runtime.devices import Devices
from advjax.runtime.preemption import PreemptedError

ITSELF = "itself"
"""In place of a use of labels: the true ones, for an attack on the very model that is scored."""


class Attempt(NamedTuple):
    """Adversarial test images and how they came about."""

    attack: NamedAttack
    judge: Judge
    """The model that they were made on."""
    label_use: str
    protocol: str
    result: Adversarial
    inside: np.ndarray
    """bool [n]: the image is allowed by the threat model."""


class Maker(NamedTuple):
    """Makes adversarial images, or takes up what an interrupted evaluation has made of them."""

    experiment: Experiment
    devices: Devices
    folder: str
    stop_requested: Callable[[], bool]

    def make(self, judge: Judge, attack: NamedAttack, label_use: str, protocol: str) -> Attempt:
        batch_size = self.experiment.evaluation.batch_size
        if attack.stages is not None and label_use == "true":
            # Stages leave an image alone after its first success in any case: what is there need not be made again.
            label_use = ITSELF
        test, on_itself = judge.test, label_use == ITSELF
        title = f"{attack.name} on {judge.name}" + (f", {judge.deployed.num_samples} draws" if judge.is_random else "")
        if attack.stages is not None:
            run = staged_attacker(
                judge.deployed,
                attack.stages,
                attack.threat_model,
                attack.name,
                self.devices,
                batch_size,
                title=title,
                search_dtype=attack.search_dtype,
            )
            if label_use == "predicted":
                test = test._replace(labels=judge.predictions)
        else:
            attack_fn = attack.for_verdict() if on_itself else attack.for_transfer(label_use)
            run = attacker(judge.deployed, attack_fn, attack.name, self.devices, batch_size, title=title)
        if self.stop_requested():
            raise PreemptedError(f"{title}: stopped before it, state saved")
        result = run(judge.variables, test, self.experiment.seed, self._interruption(judge, attack, label_use))
        inside = allowed(attack.threat_model, pixels(test.images), result.images, batch_size)
        return Attempt(attack, judge, "true" if on_itself else label_use, protocol, result, inside)

    def _interruption(self, judge: Judge, attack: NamedAttack, label_use: str) -> Interruption:
        plan, test = self.experiment.evaluation, judge.test
        facts = [attack.name, attack.spec, label_use, judge.hash, self.experiment.seed, plan.batch_size]
        facts += [judge.name, judge.defense.spec if judge.defense else None, judge.deployed.num_samples]
        # What an older version has left behind may lack a field.
        facts += Adversarial._fields
        digest = hashlib.sha256(json.dumps(facts).encode())
        for array in (test.images, test.labels, test.index):
            digest.update(np.ascontiguousarray(array).tobytes())
        identity = digest.hexdigest()
        path = os.path.join(self.folder, f"{attack.name}.{judge.name}.{label_use}.{identity[:8]}")
        return Interruption(path, identity, self.stop_requested)


def clean_outcome(judge: Judge, seed: int) -> Outcome:
    zeros = np.zeros(len(judge.test.labels))
    return _outcome(judge, None, seed)._replace(predictions=judge.predictions, distances=zeros, steps=zeros)


def outcome_under(judge: Judge, attempt: Attempt, seed: int) -> Outcome:
    start = time.perf_counter()
    predictions = judge.predict(judge.variables, attempt.result.images, judge.test.index, seed)
    seconds = attempt.result.seconds + time.perf_counter() - start
    return _outcome(judge, attempt, seed)._replace(
        predictions=predictions, distances=attempt.result.distances, steps=attempt.result.steps, seconds=seconds
    )


def _outcome(judge: Judge, attempt: Attempt | None, seed: int) -> Outcome:
    """What is known before anything is measured; no attempt stands for clean images."""
    attack = attempt.attack if attempt else None
    is_noise = attempt is not None and attempt.attack.is_noise
    itself = attempt is not None and attempt.judge.name == judge.name and not is_noise
    nothing = np.zeros(0)
    return Outcome(
        run=judge.run.name,
        split="test",
        attack=attack.name if attack else CLEAN,
        norm=attack.norm if attack and not is_noise else None,
        epsilon=attack.epsilon if attack else None,
        made_on=attempt.judge.run.name if attempt and not is_noise else None,
        adaptive=itself,
        knowledge=_knowledge(judge, attempt),
        defense=judge.defense_name,
        protocol=attempt.protocol if attempt else "sound",
        label_use=attempt.label_use if attempt else "true",
        seed=seed,
        eot_samples=judge.deployed.num_samples if itself and judge.is_random else 1,
        seconds=0.0,
        model_hash=judge.hash,
        index=judge.test.index,
        labels=judge.test.labels,
        predictions=nothing,
        distances=nothing,
        steps=nothing,
    )


def _knowledge(judge: Judge, attempt: Attempt | None) -> str:
    if attempt is None:
        return "none"
    if attempt.attack.is_noise:
        return NOTHING
    if attempt.judge.name == judge.name:
        return SCORES if attempt.attack.is_query else EVERYTHING
    return OBLIVIOUS if attempt.judge.run.name == judge.run.name else TRANSFER
