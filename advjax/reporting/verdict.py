"""The result of an evaluation in one sentence per model, and the facts at the head of a report."""

from collections.abc import Sequence

from advjax.evaluation.attack_facts import AttackFacts, StageFacts
from advjax.evaluation.outcomes import CLEAN
from advjax.evaluation.report import ALL, CheckRow, Report, Row, Summary, is_robust_accuracy
from advjax.evaluation.summaries import WORST_CASE
from advjax.reporting.formatting import model_name, percent, threat_name


def verdicts(report: Report) -> list[str]:
    """A sentence for each model and threat model: clean and robust accuracy, under what, and what to beware of."""
    measured = {(entry["run"], entry["defense"]) for entry in report.summary}
    clean = [row for row in report.rows if row["attack"] == CLEAN and row["subset"] == ALL]
    unmeasured = [row for row in clean if (row["run"], row["defense"]) not in measured]
    return [*(_verdict(entry, report) for entry in report.summary), *map(_without_attack, unmeasured)]


def head(report: Report) -> list[tuple[str, str]]:
    """Heading -> fact: data, models, attacks, date, precision and device, as far as the report knows them."""
    models = dict.fromkeys(model_name(row["run"], row["defense"]) for row in report.rows)
    searches = {attack["search_dtype"]: attack["name"] for attack in report.attacks if attack["search_dtype"]}
    low = "".join(f"; search of {name} in {dtype}" for dtype, name in searches.items())
    count, kind = report.environment.get("device_count"), report.environment.get("device_kind")
    facts = {
        "Data": _data(report),
        "Models": ", ".join(models),
        "Attacks": "; ".join(attack_text(attack) for attack in report.attacks),
        "Date": report.date,
        "Precision": f"{report.data['precision']}{low}" if "precision" in report.data else "",
        "Device": f"{count} × {kind}" if count and count > 1 else str(kind or ""),
    }
    return [(heading, text) for heading, text in facts.items() if text]


def attack_text(attack: AttackFacts) -> str:
    """Such as "pgd_50: 50 steps", or "auto_attack: apgd-ce 100 steps, apgd-t 100 steps × 9, square 5000 queries"."""
    stages = attack["stages"]
    if len(stages) == 1 and stages[0]["name"] == attack["name"]:
        described = _budget(stages[0])
    else:
        described = ", ".join(f"{stage['name']} {_budget(stage)}".strip() for stage in stages)
    return f"{attack['name']} ({described})" if described else attack["name"]


def _budget(stage: StageFacts) -> str:
    if stage["steps"] is None:
        return f"× {stage['rounds']}" if stage["rounds"] > 1 else ""
    unit = "queries" if stage.get("is_query") else "step" if stage["steps"] == 1 else "steps"
    return f"{stage['steps']} {unit}" + (f" × {stage['rounds']}" if stage["rounds"] > 1 else "")


def _data(report: Report) -> str:
    if not report.data:
        return ""
    split = f", {report.data['split']} split" if report.data.get("split") else ""
    return f"{report.data['name']}{split}, {report.data['num_examples']} images"


def _verdict(entry: Summary, report: Report) -> str:
    name, clean, robust = model_name(entry["run"], entry["defense"]), entry["clean"], entry["robust"]
    text = f"{name}: {percent(clean['accuracy'])} % clean" if clean else f"{name}:"
    threat = threat_name(entry["norm"], entry["epsilon"])
    if robust is None:
        return f"{text}; not attacked itself ({threat}), so there is no evidence of robustness"
    data = f" of {report.data['name']}" if report.data else ""
    attacks = _adaptive_attacks(entry, report)
    under = f"worst of {', '.join(attacks)}" if len(attacks) > 1 else f"under {', '.join(attacks)}"
    text += f", {percent(robust['accuracy'])} % robust ({threat}; {under} on {robust['n']} images{data})"
    return "; ".join([text, *_borrowed(entry), *_doubts(entry, report.checks)])


def _without_attack(row: Row) -> str:
    name = model_name(row["run"], row["defense"])
    said = "no attack with a finite epsilon was made, so there is no evidence of robustness"
    return f"{name}: {percent(row['accuracy'])} % clean; {said}"


def _adaptive_attacks(entry: Summary, report: Report) -> list[str]:
    """Names of the attacks that robust accuracy is the worst case of."""
    key = entry["run"], entry["defense"], entry["norm"], entry["epsilon"]
    rows = [row for row in report.rows if row["subset"] == ALL and is_robust_accuracy(row)]
    found = [row["attack"] for row in rows if (row["run"], row["defense"], row["norm"], row["epsilon"]) == key]
    return [name for name in dict.fromkeys(found) if name != WORST_CASE]


def _borrowed(entry: Summary) -> list[str]:
    """What attackers who do not attack the model itself leave, where this is more than chance."""
    found, robust = [], entry["robust"]
    for kind, ignored in (("transfer", "the model itself"), ("oblivious", "the defense")):
        cell = entry[kind]
        if cell and robust and cell["accuracy"] is not None and cell["low"] > robust["high"]:
            there, lost = percent(cell["accuracy"]), percent(cell["accuracy"] - robust["accuracy"])
            found.append(
                f"of the {there} % under {kind} attacks, {lost} points are lost once the attacker sees {ignored}"
            )
    return found


def _doubts(entry: Summary, checks: Sequence[CheckRow]) -> list[str]:
    own = [check for check in checks if (check["run"], check["defense"]) == (entry["run"], entry["defense"])]
    failed = [check["name"] for check in own if not check["passed"]]
    return [f"this may be too high: the report card fails on {', '.join(failed)}"] if failed else []
