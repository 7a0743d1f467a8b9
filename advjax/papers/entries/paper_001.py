"""The mixup report (001): Tables 1 to 8 and Figures 3 to 10, in the report's own form; sound forms on CIFAR-10."""

from advjax.papers.entries import parts_001 as parts
from advjax.papers.recipe import TINY, Entry, FigurePlan, Part, Scale

_PRETRAINED, _FRESH = ("vanilla", "mixup", "manifold"), ("vanilla_fresh", "mixup_fresh", "manifold_fresh")
_SOFT_MNIST, _SOFT_CIFAR = (0.001, 0.002, 0.003, 0.005, 0.01), (0.001, 0.005, 0.01)
_FULL = Scale()
_CLEAN_SMALL = Scale(changes={"run.*.epochs": 100}, num_examples=1000, num_auto_attack=200)
_MNIST_SMALL = Scale(
    changes={"run.*.epochs": 20, "run.clean.epochs": 100},
    of_config={parts.CLEAN: {"run.*.epochs": 100}},
    num_examples=1000,
    num_auto_attack=500,
)
_MNIST_MINI = _MNIST_SMALL._replace(changes={"run.*.epochs": 2, "run.clean.epochs": 100}, num_auto_attack=200)
_CIFAR_SMALL = Scale(width=1 / 8, share=0.2, changes={"run.*.epochs": 20}, num_examples=1000, num_auto_attack=200)


def _scales(small: Scale, full: Scale = _FULL) -> dict[str, Scale]:
    return {"full": full, "small": small, "tiny": TINY}


_CLEAN_MNIST, _CLEAN_CIFAR = Part("clean_mnist", parts.CLEAN, "mnist"), Part("clean_cifar10", parts.CLEAN, "cifar10")
_FRESH_MNIST = parts.adversarial("fresh_mnist", "mnist", _FRESH, parts.table("001_table4", *_FRESH))
_FROM_CLEAN_MNIST = parts.adversarial(
    "pretrained_mnist", "mnist", ("clean", *_PRETRAINED), parts.table("001_table4", *_PRETRAINED)
)
_MNIST_SCALES = {**_scales(_MNIST_SMALL), "mini": _MNIST_MINI}
_FROM_CLEAN_CIFAR = parts.adversarial(
    "pretrained_cifar10", "cifar10", ("clean", *_PRETRAINED), parts.table("001_table6", *_PRETRAINED)
)
_EPOCH_TABLES = ("001_adversarial_epochs",)


def _rows_of_images(caption: str, attack: str) -> FigurePlan:
    networks = {"vanilla": "the trained network", "mixup": "the untrained network"}
    return FigurePlan("images", caption, attacks=(attack,), networks=networks)


_IMAGES_SHOWN = (
    "Of each class, the first image that the trained network classifies correctly, if there is one, is shown after all "
    'steps of the attack. The untrained network is the run "mixup", which takes a single step of no length.'
)
ENTRIES = (
    Entry(
        "001_table1",
        "Clean training on MNIST: accuracy after every epoch, the best epoch, and the report's attack",
        ("001_table1", "001_table3", "001_epochs"),
        (_CLEAN_MNIST,),
        _scales(_CLEAN_SMALL),
        {"full": 5.6, "small": 1.2},
        FigurePlan("curves", "Accuracy and cross-entropy over epochs (Figures 3 and 4)"),
        note="Epochs are compared at equal numbers of epochs: the learning rate is constant until epoch 300. The three "
        "rows of Table 3 are one network, by the report's logs.",
    ),
    Entry(
        "001_table2",
        "Clean training on CIFAR-10: accuracy after every epoch, the best epoch, and the report's attack",
        ("001_table2", "001_table3", "001_epochs"),
        (_CLEAN_CIFAR,),
        _scales(_CIFAR_SMALL),
        {"small": 3.0},
        FigurePlan("curves", "Accuracy and cross-entropy over epochs (Figures 5 and 6)"),
    ),
    Entry(
        "001_table4",
        "Adversarial training on MNIST, from trained and from fresh networks",
        ("001_table4", *_EPOCH_TABLES),
        (_FROM_CLEAN_MNIST, _FRESH_MNIST),
        _MNIST_SCALES,
        {"small": 12.0, "mini": 1.8},
        FigurePlan("curves", "Accuracy over epochs (Figure 9)"),
        note="At scales small and mini, the trained networks to start from have seen 100 epochs instead of 500.",
    ),
    Entry(
        "001_table5",
        "MNIST before and after adversarial training",
        ("001_table5",),
        (
            parts.before("001_table5", _CLEAN_MNIST, ("own_pgd:mnist", "own_pgd")),
            parts.adversarial(
                "pretrained_mnist", "mnist", ("clean", *_PRETRAINED), parts.table("001_table5", *_PRETRAINED)
            ),
        ),
        _MNIST_SCALES,
        {"small": 3.0},
        note="Table 5 repeats cells of Tables 1, 3 and 4.",
    ),
    Entry(
        "001_table6",
        "CIFAR-10 before and after adversarial training",
        ("001_table6", *_EPOCH_TABLES),
        (parts.before("001_table6", _CLEAN_CIFAR, ("own_pgd:cifar10:v1", "own_pgd_v1")), _FROM_CLEAN_CIFAR),
        _scales(_CIFAR_SMALL),
        {"small": 6.0},
        FigurePlan("curves", "Accuracy over epochs (Figure 10)"),
    ),
    Entry(
        "001_table7",
        "Mixup with soft labels in adversarial training on MNIST",
        ("001_table7", *_EPOCH_TABLES),
        (parts.mixup("mnist", "001_table7", "adv_mixup:soft0"), *parts.soft("mnist", _SOFT_MNIST)),
        _MNIST_SCALES,
        {"small": 5.0},
        FigurePlan("curves", "Accuracy over epochs"),
    ),
    Entry(
        "001_table7_cifar10",
        "Mixup with soft labels in adversarial training on CIFAR-10",
        ("001_table7", *_EPOCH_TABLES),
        (parts.mixup("cifar10", "001_table7", "adv_mixup:soft0"), *parts.soft("cifar10", _SOFT_CIFAR)),
        _scales(_CIFAR_SMALL),
        {"small": 6.0},
        FigurePlan("curves", "Accuracy over epochs"),
    ),
    Entry(
        "001_table8",
        "Partial PGD on MNIST",
        ("001_table8", *_EPOCH_TABLES),
        (parts.mixup("mnist", "001_table8", "adv_mixup"), *parts.partial("mnist")),
        _MNIST_SCALES,
        {"small": 1.0},
        FigurePlan("curves", "Accuracy over epochs"),
    ),
    Entry(
        "001_table8_cifar10",
        "Partial PGD on CIFAR-10, with a constant learning rate and with two drops",
        ("001_table8", *_EPOCH_TABLES),
        (parts.mixup("cifar10", "001_table8", "adv_mixup"), *parts.partial("cifar10")),
        _scales(_CIFAR_SMALL),
        {"small": 4.0},
        FigurePlan("curves", "Accuracy over epochs"),
    ),
    Entry(
        "001_figure7",
        "MNIST images, one of each class, attacked on a trained and on an untrained network",
        (),
        (parts.images("mnist"),),
        _scales(Scale(changes={"run.vanilla.epochs": 5}, num_auto_attack=0), Scale(num_auto_attack=0)),
        {"full": 2.0, "small": 0.1},
        _rows_of_images("The report's attack on MNIST (Figure 7)", "own_pgd"),
        note=_IMAGES_SHOWN,
    ),
    Entry(
        "001_figure8",
        "CIFAR-10 images, one of each class, attacked on a trained and on an untrained network",
        (),
        (parts.images("cifar10"),),
        _scales(_CIFAR_SMALL._replace(num_auto_attack=0), Scale(num_auto_attack=0)),
        {"small": 1.0},
        _rows_of_images("The report's attack on CIFAR-10 (Figure 8)", "own_pgd_v1"),
        note=f"{_IMAGES_SHOWN} They are shown in pixels, as the networks take them. The report shows normalized images "
        "clipped to [0, 1], the range that its attack moves them into; in pixels, that range is about 0.45 to 0.74, so "
        "attacked images are gray here.",
    ),
    Entry(
        "001_sound_cifar10",
        "Mixup in sound adversarial training on CIFAR-10",
        (),
        (
            parts.sound("vanilla", "PreActResNet18: adversarial training"),
            parts.sound("mixup", "PreActResNet18: with mixup"),
            parts.sound("manifold", "PreActResNet18: with manifold mixup"),
            parts.sound("soft_labels", "PreActResNet18: with mixup and soft labels"),
            parts.sound("partial", "PreActResNet18: partial PGD"),
        ),
        _scales(_CIFAR_SMALL._replace(num_auto_attack=0), Scale(num_auto_attack=0)),
        {"small": 4.0},
        FigurePlan("points", "Attacks crafted on each network, 8/255 in pixels"),
        note="No numbers of the report: its attack is neither in pixels nor on the network in inference mode.",
    ),
)
