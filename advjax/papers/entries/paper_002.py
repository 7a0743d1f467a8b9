"""Cross-architecture adversarial augmentation (002): Tables 1, 2 and 4.

Table 3 was printed as an image that cannot be read, and the text gives no numbers of it; its protocol, the old
adversarial images shown to the retrained networks, is in the reports as transfer from the networks before.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from advjax.papers.recipe import TINY, Entry, Part, Scale

_NETWORKS = ("resnet18", "resnet50", "resnet101")
_BUDGETS = ("fgsm_1", "fgsm_2", "fgsm_3")
_MEAN = "FGSM:mean_eps0.01_0.02_0.03"
_SMALL = Scale(
    width=0.25,
    share=0.1,
    changes={"run.*.epochs": 10, "run.*.patience": 3, "data.image_size": 32},
    num_examples=1000,
    num_auto_attack=200,
)
_SCALES = {"full": Scale(), "small": _SMALL, "tiny": TINY._replace(changes={**TINY.changes, "data.image_size": 32})}
_HOURS = {"small": 6.0}


def _means(table: str, data: str, training: str, suffix: str, with_clean: bool) -> Iterator[dict[str, Any]]:
    """The means over three networks, and over three budgets, that the text prints."""
    found = {"table": table, "model": "mean_of_3_resnets", "dataset": f"{data}/test20", "training": training}
    runs = [f"{network}{suffix}" for network in _NETWORKS]
    if with_clean:
        rows = tuple({"run": run} for run in runs)
        yield {**found, "attack": "none", "run": runs[0], "our_attack": "clean", "mean_of": rows}
    # Before retraining, the networks are sources of transfer attacks as well, with a row of their own for that.
    protocol = {} if suffix else {"protocol": "sound"}
    rows = tuple(
        {"run": run, "our_attack": attack, "adaptive": True, **protocol} for run in runs for attack in _BUDGETS
    )
    yield {**found, "attack": _MEAN, "run": runs[0], "our_attack": _BUDGETS[0], "mean_of": rows}


def _parts(specs: Mapping[str, tuple[dict[str, Any], ...] | None]) -> tuple[Part, ...]:
    return tuple(
        Part(f"cross_architecture_{data}", "cross_architecture", data, specs=found) for data, found in specs.items()
    )


_BEFORE = {
    data: tuple(_means("002_table2", data, "standard", "", True))[: 1 if data == "cifar10" else 2]
    for data in ("mnist", "cifar10", "cats_vs_dogs")
}
_AFTER = {
    data: tuple(_means("002_table4", data, "cross_arch_adv_aug", "_retrained", False))
    for data in ("mnist", "cats_vs_dogs")
}

ENTRIES = (
    Entry(
        "002_table1",
        "Clean accuracy before and after retraining",
        ("002_table1",),
        _parts(dict.fromkeys(("mnist", "cifar10", "cats_vs_dogs"))),
        _SCALES,
        _HOURS,
        note="Cats vs Dogs needs data that TensorFlow Datasets has prepared, in TFDS_DATA_DIR.",
    ),
    Entry(
        "002_table2",
        "FGSM before retraining, means over networks and budgets",
        ("002_table2",),
        _parts(_BEFORE),
        _SCALES,
        _HOURS,
    ),
    Entry(
        "002_table4",
        "FGSM before and after retraining, crafted anew on each network, means over networks and budgets",
        ("002_table2", "002_table4"),
        _parts({data: (_BEFORE[data][-1], *after) for data, after in _AFTER.items()}),
        _SCALES,
        _HOURS,
        note="Only means are in the text; the table itself was printed as an image.",
    ),
)
