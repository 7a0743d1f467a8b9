"""Report rows and gallery items made up for tests, and a parser that checks HTML pages."""

import html.parser

import numpy as np

from advjax.evaluation.report import Row
from advjax.reporting import html_page

VOID = {"meta", "img", "br", "wbr"}


class Checker(html.parser.HTMLParser):
    """Collects tags, ids, references and table cells; fails unless every element is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.references, self.tags, self.cells = [], [], [], set(), []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.references += [attributes[name] for name in ("src", "href", "xlink:href", "srcset") if name in attributes]
        if tag == "td":
            self.cells.append((attributes.get("class"), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open:
            kind, text = self.cells[-1]
            self.cells[-1] = (kind, " ".join(f"{text} {data}".split()))


def make_item(shape=(8, 8, 1), size=8 / 255, **changes) -> html_page.GalleryItem:
    rng = np.random.default_rng(0)
    original = rng.uniform(0.2, 0.8, shape).astype(np.float32)
    adversarial = original + np.float32(size) * rng.choice([-1, 1], shape).astype(np.float32)
    seen = ("base", "cat", "dog", "adaptive"), ("fixer", "cat", "cat", "transfer")
    predictions = [html_page.Prediction(*entry) for entry in seen]
    return html_page.GalleryItem("pgd", "base", "", original, adversarial, "cat", predictions)._replace(**changes)


def make_row(run, attack="clean", accuracy=0.9, made_on=None, **changes) -> Row:
    row = Row(
        run=run,
        split="test",
        subset="all",
        attack=attack,
        norm=None if made_on is None else "linf",
        epsilon=None if made_on is None else 8 / 255,
        made_on=made_on,
        adaptive=made_on == run,
        knowledge="none",
        defense="none",
        protocol="sound",
        labels="true",
        seed=3,
        eot_samples=1,
        n=100,
        accuracy=accuracy,
        low=max(0.0, (accuracy or 0.0) - 0.04),
        high=min(1.0, (accuracy or 0.0) + 0.04),
        sd_fifths=0.012,
        seconds=1.0,
        model_hash="8c1f60d2",
    )
    return Row(**(row | changes))
