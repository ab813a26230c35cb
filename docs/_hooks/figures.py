"""Figures of the docs, read from the result files: no measured number is typed by hand.

In docs/ a figure is written as where it stands: ``{{ strategies.json#/strategies/random/0/regret/mean | .2f }}``. The file is one
of benchmarks/results or a path from the root of the repository; what follows # is a JSON pointer (RFC 6901) in which ``*`` stands
for every item of a list or object; the format is one of Python's (``%`` for shares), for several items behind mean, min or max.

README.md is shown as it lies, so a figure there is followed by the same in a comment:
``0.03<!-- strategies.json#/strategies/surrogate/2/regret/mean | .2f -->``; `unsupported` says which do not agree.
"""

import functools
import json
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"

PLACE = r"[\w./-]+\.json#/[^|{}<>]*?(?: *\| *[^|{}<>]*?)?"
FIGURE = re.compile(r"\{\{ *(" + PLACE + r") *\}\}")
TABLE = re.compile(r"\{\{ *table (\w+) *\}\}")
NOTED = re.compile(r"(\S+(?:[ \u00a0]%)?)<!-- *(" + PLACE + r") *-->")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)

MEASURED = re.compile(
    r"(?<![\w.@])(?:\d[\d,]*\.\d+|\d[\d,]*(?=[ \u00a0]?(?:%|ms\b|points?\b|seconds?\b|minutes?\b|times\b|s\b|MiB\b|images/s\b)))"
)
"""What looks like a measured number: a decimal fraction, or a number with a unit of measurement."""

AGGREGATES: dict[str, Callable[[list[float]], float]] = {"mean": statistics.fmean, "min": min, "max": max}


def figure(place: str) -> str:
    """The figure at ``FILE#/POINTER | [AGGREGATE] FORMAT``. Raises ValueError where there is none."""
    address, _, how = place.partition("|")
    file, _, pointer = address.strip().partition("#")
    words = how.split()
    aggregate = AGGREGATES[words.pop(0)] if words and words[0] in AGGREGATES else None
    found = list(_at(_result(file), pointer.split("/")[1:], address.strip()))
    if aggregate is None and len(found) != 1:
        raise ValueError(f"{address.strip()} names {len(found)} values: take their mean, min or max")
    value = found[0] if aggregate is None else aggregate(found)
    if isinstance(value, (dict, list)) or value is None:
        raise ValueError(f"{address.strip()} must be a number or text, but is {type(value).__name__}")
    return format(value, words[0] if words else "").replace("%", " %") if not isinstance(value, str) else value


@functools.cache
def _result(file: str) -> Any:
    path = next((path for path in (RESULTS / file, ROOT / file) if path.is_file()), None)
    if path is None:
        raise ValueError(f"there is no result file {file}")
    return json.loads(path.read_text())


def _at(value: Any, steps: list[str], address: str) -> Iterator[Any]:
    if not steps:
        yield value
        return
    step = steps[0].replace("~1", "/").replace("~0", "~")
    if step == "*":
        for item in value.values() if isinstance(value, dict) else value:
            yield from _at(item, steps[1:], address)
        return
    try:
        found = value[int(step)] if isinstance(value, list) else value[step]
    except (KeyError, IndexError, ValueError, TypeError):
        raise ValueError(f"{address}: there is no {step!r}") from None
    yield from _at(found, steps[1:], address)


def filled(text: str) -> str:
    """``text`` with its figures and tables."""
    text = TABLE.sub(lambda match: TABLES[match[1]](), text)
    return FIGURE.sub(lambda match: figure(match[1]), text)


def prose(text: str) -> str:
    """``text`` without code, comments, figures that are read from files, addresses and headings."""
    for pattern in (r"(?ms)^( *)```.*?^\1```$", r"`[^`\n]*`", r"\]\([^)]*\)", r"(?m)^#.*$", r"(?s)\A---\n.*?\n---\n"):
        text = re.sub(pattern, "", text)
    return COMMENT.sub("", FIGURE.sub("", TABLE.sub("", text)))


ALLOWED = frozenset({"95"})
"""Numbers with a unit that are no measurement: the level of intervals. (Settings and formulas stand in backquotes.)"""


def unsupported(text: str) -> list[str]:
    """What is wrong with the figures of a page: noted ones that the files do not hold, and such as name no file."""
    wrong = []
    for match in NOTED.finditer(text):
        said, holds = match[1].replace("\u00a0", " ").lstrip("(*|"), figure(match[2])
        if said != holds:
            wrong.append(f"{said}, but {match[2]} is {holds}")
    for match in FIGURE.finditer(text):
        figure(match[1])
    bare = prose(NOTED.sub("", text))
    return wrong + [f"{match[0]} names no result file" for match in MEASURED.finditer(bare) if match[0] not in ALLOWED]


def _rows(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _latency() -> str:
    """Tables by in-context profile against the noise, one row for each network and runtime."""
    rows = []
    for case in _result("latency_table.json")["cases"]:
        if "in-context" not in case["methods"]:
            continue
        found, noise, sessions = case["methods"]["in-context"], case["noise floor"], case["two sessions"]
        rows.append(
            [
                case["case"].replace("_", " "),
                f"{noise['mape']:.1f} / {sessions['mape']:.1f} %",
                f"{found['mape']:.1f} %",
                f"{found['network']:+.1f} %",
                f"{100 * found['within_10']:.0f} %",
                f"{found['spearman']:.3f}",
                f"{found['seconds']:.0f} s",
            ]
        )
    titles = [
        "network, runtime",
        "noise: rounds / sessions",
        "error (MAPE)",
        "the network itself",
        "within 10 %",
        "rank correlation",
        "time to profile",
    ]
    return _rows(titles, rows)


def _methods() -> str:
    """All methods on the cases that compare them."""
    names = ["in-context", "regression", "isolated", "naive sum", "one-slot swap", "FLOPs"]
    cases = [case for case in _result("latency_table.json")["cases"] if "naive sum" in case["methods"]]
    rows = []
    for name in names:
        found = [case["methods"].get(name) for case in cases]
        if any(item is not None for item in found):
            rows.append([name, *("" if item is None else f"{item['mape']:.1f} % / {item['spearman']:.3f}" for item in found)])
    return _rows(["method", *(case["case"].replace("_", " ") for case in cases)], rows)


PEERS = {
    "our table": "our table",
    "one-swap table": "one operator swapped at a time",
    "isolated operators": "isolated operators, on top of the network's own time",
    "dictionary": "dictionary of isolated parts (Once-for-All)",
    "kernel regression": "kernel regression (nn-Meter's method)",
    "FLOPs": "FLOPs, a line",
    "trees": "trees on whole networks",
}
"""Method of peers.json -> what it is called."""


def _peers() -> str:
    """Ways to predict, on the same held-out children."""
    methods = _result("peers.json")["methods"]
    rows = [
        [
            title,
            f"{methods[name]['mape']:.1f} %",
            _share(methods[name]["within_10"], 0),
            f"{methods[name]['spearman']:.3f}",
            str(methods[name]["measured"]),
            f"{methods[name]['seconds']:.0f} s",
        ]
        for name, title in PEERS.items()
        if name in methods
    ]
    return _rows(["", "error (MAPE)", "within 10 %", "rank correlation", "networks measured", "time to measure"], rows)


FORMS = {
    "sum": "a sum over slots",
    "families": "and neighbours' kinds (dense, depthwise, pool)",
    "operators": "and neighbours' operators",
    "edges": "and a term for each two operators of each two neighbouring slots",
    "cache": "and the cache",
    "both": "and the cache, and neighbours' operators",
}
"""Form of cache.json -> what it is called."""


def _cache() -> str:
    """Tables as sums, and with a cache or a bend."""
    rows = []
    for name, case in _result("cache.json")["cases"].items():
        known, alone = case["tables"]["as made"], case["tables"]["as a sum"]
        cache, bend = case["cache"], case["bend"]
        seen = "nothing" if bend is None else f"{bend['fastest']:.2f} to {bend['network']:.2f} times the entries"
        seen = seen if cache is None else f"saves below {cache['mib']:.1f} MiB"
        weights = " to ".join(f"{mib:.1f}" for mib in case["weights_mib"])
        both = [f"{item['mape']:.1f} % / {item['max_error']:.0f} %" for item in (alone, known)]
        rows.append([name.replace("_", " "), f"{weights} MiB", seen, f"{case['floor_mape']:.1f} %", *both])
    titles = ["network, runtime", "weights", "seen", "noise", "error as a sum, mean / largest", "as made"]
    return _rows(titles, rows)


def _forms() -> str:
    """What explains the rest of a sum, in the demo's networks that were left out of the fit."""
    cases = {name: case["forms"] for name, case in _result("cache.json")["cases"].items() if name.startswith("demo")}
    rows = [
        [
            title,
            *(
                f"{case[form]['mape']:.1f} % ({case[form]['gain']:+.1f} ± {case[form]['gain_standard_error']:.1f})"
                for case in cases.values()
            ),
        ]
        for form, title in FORMS.items()
    ]
    return _rows(["form", *(name.replace("_", " ") for name in cases)], rows)


def _speed() -> str:
    """`nar-hw profile` beside an older commit's."""
    rows = []
    for case in _result("latency_speed.json")["against"]:
        ratio, middle = case["now / before"], {}
        for side in ("before", "now"):
            middle[side] = {key: statistics.median(row[key] for row in case[side]) for key in ("wall_s", "MAPE warm", "network")}
        before, now = middle["before"], middle["now"]
        rows.append(
            [
                case["case"].replace("_", " "),
                f"{before['wall_s']:.0f} s, {now['wall_s']:.0f} s",
                f"{ratio['wall_s']:.2f}",
                f"{before['MAPE warm']:.1f} %, {now['MAPE warm']:.1f} %",
                f"{ratio['MAPE warm']:.2f} / {ratio['MAPE as before']:.2f}",
                f"{case['floors']['warm']:.1f} %",
                f"{before['network']:+.1f} %, {now['network']:+.1f} %",
            ]
        )
    titles = [
        "network, runtime",
        "time before, now",
        "ratio",
        "error before, now",
        "ratio without / with first runs",
        "noise",
        "network before, now",
    ]
    return _rows(titles, rows)


def _copies() -> str:
    """One network, loaded several times."""
    rows = [
        [runtime, str(len(case["processes"])), f"{case['first']:.3f}", f"{case['last']:.3f}", f"{100 * case['spread']:.1f} %"]
        for runtime, case in _result("copies.json")["cases"].items()
    ]
    return _rows(["runtime", "processes", "loaded first", "loaded last", "standard deviation of all"], rows)


def _contention() -> str:
    """Tables on a quiet machine and beside a spinner."""
    found = _result("contention.json")["summary"]
    titles = {"quiet": "quiet", "intruded": "meant to be quiet, but something ran", "spinner": "beside a spinner on one core"}
    rows = [
        [
            title,
            str(found[name]["runs"]),
            str(found[name]["marked"]),
            str(found[name]["said"]),
            f"{found[name]['rank']['min']:.3f} / {found[name]['rank']['median']:.3f}",
            f"{found[name]['mape']['median']:.1f} %",
            f"{found[name]['noise floor']:.1f} %",
            f"{found[name]['noise between sessions']:.1f} %",
        ]
        for name, title in titles.items()
        if found[name]
    ]
    names = [
        "tables",
        "marked",
        "said while it ran",
        "rank correlation, least / median",
        "error",
        "noise",
        "noise between sessions",
    ]
    return _rows(["", *names], rows)


def _strategies() -> str:
    found = _result("strategies.json")["strategies"]
    rows = [
        [
            f"`{name}`",
            *(f"{item['regret']['mean']:.2f}" for item in items),
            f"{items[-1]['share']['mean']:.1%}".replace("%", " %"),
            items[-1]["near"],
        ]
        for name, items in found.items()
    ]
    counts = [f"regret at {item['evaluations']:,}" for item in next(iter(found.values()))]
    return _rows(["strategy", *counts, "of the optimum", "within 2 % of the target"], rows)


def _share(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def _demo() -> str:
    """The networks of the demo, means over its seeds with their range."""
    runs = [run["networks"] for run in _result("demo.json")["results"]]

    def over(values: list[float], digits: int, factor: float = 1.0) -> str:
        low, high, mean = (factor * value for value in (min(values), max(values), statistics.fmean(values)))
        return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    rows = []
    for networks in zip(*runs, strict=True):
        child = networks[0]["target_ms"] is not None
        lost = [before[0]["test_accuracy"] - network["test_accuracy"] for before, network in zip(runs, networks, strict=True)]
        rows.append(
            [
                f"{networks[0]['name']} of the latency" if child else "network",
                over([network["ratio"] for network in networks], 3) if child else "1",
                over([network["test_accuracy"] for network in networks], 2, 100),
                over(lost, 2, 100) if child else "",
            ]
        )
    return _rows(["asked", "measured, of the network's latency", "test accuracy, %", "points lost"], rows)


def _claim() -> str:
    """CIFAR-10: what each method made of the published network, all measured in one session; one row for each training."""
    found = _result("claim.json")
    names = {
        "refined": "`nar-hw refine`",
        "narrowed": "narrowed uniformly",
        "pruned": "torch-pruning, Taylor",
        "fastnas": "modelopt FastNAS",
        "random": "random child of the table",
        "network": "the published network",
    }
    rows = []
    for title, item in sorted(found["points"].items(), key=lambda entry: -entry[1]["share"]):
        method, _, rest = title.partition(" ")
        seconds = item.get("CPU seconds")
        rows.append(
            [
                f"{names[method]} {rest}".strip(),
                f"{item['share']:.3f}",
                f"{item['p50_ms']:.3f} ms",
                f"{100 * item['test']:.2f} %",
                f"{item['params'] / 1e3:.0f} k",
                f"{item['flops'] / 1e6:.1f} M",
                "" if seconds is None else f"{seconds / 60:.0f} min",
            ]
        )
    titles = ["", "measured, of the network's", "latency", "test accuracy", "parameters", "FLOPs", "CPU time to get it"]
    return _rows(titles, rows)


def _claim_int8() -> str:
    found = _result("claim.json")["int8, seed 0"]
    rows = [
        [name, f"{item['p50_ms']:.3f} ms", "" if "test" not in item else f"{100 * item['test']:.2f} %"]
        for name, item in found.items()
    ]
    return _rows(["", "latency", "test accuracy"], rows)


def _claim_tables() -> str:
    rows = [
        [name, f"{item['network, ms']:.3g} ms", f"{item['fastest child, share']:.2f}", f"{item['error, %']:.1f} %"]
        for name, item in _result("claim.json")["tables"].items()
    ]
    return _rows(["latency table", "the network", "fastest child, of that", "error on held-out children"], rows)


def _growth() -> str:
    found = _result("latency_table.json")["growth"]
    rows = [
        [str(row["slots"]), str(row["children"]), f"{row['seconds']:.0f} s", str(row["children for least squares"])]
        for row in found["rows"]
        if (row["operators"], row["rounds"]) == (4, 8)
    ]
    titles = ["slots", "networks measured", "time", "networks that least squares needs"]
    return f"{found['model']}, {found['runtime']}:\n\n{_rows(titles, rows)}"


def _regret() -> str:
    found = _result("nar_bench_digits.json")
    names = ["surrogate", "evolution", "random", "gradient", "reinforce"]
    searches = {
        "shared weights, PreTrain, the strategy draws the paths": "{}, with PreTrain",
        "the same with fair paths (default)": "{}, with PreTrain, fair paths",
        "shared weights without PreTrain": "{}, without PreTrain",
    }
    rows = [["children trained alone, noisy scores", *(_mean(found["table"], name) for name in names)]]
    rows += [[title, *(_mean(found["search"], key.format(name)) for name in names)] for title, key in searches.items()]
    return _rows(["scores", *names], rows)


def _mean(found: dict[str, Any], name: str) -> str:
    if name not in found:
        return ""
    mean, error = found[name]["regret"]["300"]
    return f"{mean:.2f} ± {error:.2f}"


def _sharing() -> str:
    found = _result("nar_bench_digits.json")["supernet"]
    rows = [[name, f"{item['kendall'][0]:.2f} ± {item['kendall'][1]:.2f}"] for name, item in found.items() if name != "all"]
    return _rows(["shared weights", "Kendall's tau"], rows)


def _fitting() -> str:
    seeds = list(_result("fitting.json")["ranks"].values())
    ways = {
        "fitted, images dealt out": "a",
        "fitted, all images to all": "b",
        "shared weights, as long as the first": "c, time of a",
        "shared weights, as long as the second": "c, time of b",
    }
    rows = []
    for title, key in ways.items():
        each = [seed[key] for seed in seeds]
        mean = {name: statistics.fmean(item[name] for item in each) for name in each[0]}
        rows.append(
            [
                title,
                f"{mean['seconds']:.1f} s",
                f"{mean['tau, yardstick']:.2f}",
                f"{mean['tau, fine-tuned alone']:.2f}",
                _share(mean["assembled / teacher"]),
            ]
        )
    return _rows(
        ["scores", "time", "tau with the yardstick", "tau with fine-tuned children", "accuracy kept, before training"], rows
    )


def _inheritance() -> str:
    found = [_result("training.json")[f"inheritance, {data}"]["test accuracy"] for data in ("digits", "cifar10")]
    rows = [[name, *(_share(data[name]["mean"]) for data in found)] for name in found[0]]
    return _rows(["", "digits", "CIFAR-10, few images"], rows)


def _precisions() -> str:
    found = next(
        item for item in _result("export.json")["results"]["precisions"] if (item["model"], item["batch"]) == ("resnet18", 1)
    )
    rows = [
        [name.replace("_", " "), f"{found['ms'][name]:.1f} ms", f"{item['ratio']:.2f}"]
        for name, item in found["of onnxruntime fp32"].items()
    ]
    return _rows(["runtime, precision", "time", "relative"], rows)


def _faces() -> str:
    found = _result("faces.json")["lfw"]
    child = found["child"]
    latency, params = (child[name][0] / child[name][1] for name in ("predicted_ms", "params"))
    rows = []
    for name, item in found["verification"].items():
        title = (
            f"child found at {_share(latency)} of its predicted latency, {_share(params)} of its parameters"
            if name == "found child"
            else name
        )
        if isinstance(item, dict):
            rows.append(
                [title, f"{_share(item['accuracy'])} ± {_share(item['deviation over folds'])}", _share(item["TAR at FAR"]["0.1"])]
            )
        else:
            rows.append([title, _share(item, 0), "10 %"])
    return _rows(["", "verification (deviation over folds)", "TAR at FAR 10 %"], rows)


def _refine() -> str:
    """What a refinement costs against searches from scratch: means over the seeds."""
    runs = _result("refine.json")["results"]
    rows = []
    for name in ("one target, fitted", "one target, scratch", "three targets, fitted"):
        each = [run[name] for run in runs]
        found = [item["test accuracy"] for item in each]
        accuracies = [value for item in found for value in (item if isinstance(item, list) else [item])]
        seconds = statistics.fmean(item["seconds"] for item in each)
        rows.append([name, f"{seconds:.0f} s", f"{_share(min(accuracies))} to {_share(max(accuracies))}"])
    return _rows(["", "CPU time", "test accuracy"], rows)


def _gpus() -> str:
    """Which target builds for which cards."""
    from nar_hw.export.gpus import CARDS, ELSEWHERE

    rows = [[key, cards, "`tensorrt-rtx`, anywhere; `tensorrt`, on such a GPU"] for key, cards in CARDS.items()]
    rows += [[key, cards, "`tensorrt`, on such a GPU"] for key, cards in ELSEWHERE.items()]
    return _rows(["capability", "cards", "target"], sorted(rows, key=lambda row: int(row[0][2:])))


def _quantizers() -> str:
    """The trained network in int8 and fp8, by our quantizer and nvidia-modelopt's."""
    names = {"fp32": "fp32", "products": "int8, nar-hw", "modelopt int8": "int8, modelopt", "modelopt fp8": "fp8, modelopt"}
    rows = []
    for name, title in names.items():
        found = _result("tensorrt_int8.json")["rows"][name]
        kinds = found["engine"]["datatypes"]
        float_share = f"{kinds.get('Float', 0)} of {sum(kinds.values())}"
        rows.append([title, _share(found["accuracy"]), f"{found['mean error']:.3%}", f"{found['engine']['mb']:.1f}", float_share])
    return _rows(["", "test accuracy", "mean error", "engine, MB", "products in fp32"], rows)


def _tutorial() -> str:
    steps = _result("tutorial.json")["steps"]
    rows = [[f"`{step['command']}`", f"{step['seconds']:.0f} s"] for step in steps]
    return _rows(["command", "time"], [*rows, ["all", f"{sum(step['seconds'] for step in steps) / 60:.0f} min"]])


def _results() -> str:
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text())
        commands = dict.fromkeys(_commands(found))
        rows.append([f"[{path.name}](results/{path.name})", "<br>".join(f"`{command}`" for command in commands)])
    return _rows(["file", "made by"], rows)


def _commands(found: Any) -> Iterator[str]:
    if isinstance(found, dict):
        if isinstance(found.get("command"), str):
            yield found["command"]
        else:
            for item in found.values():
                yield from _commands(item)


def _runtimes() -> str:
    """The network with one operator wherever it may stand, relative to the network itself, by runtime."""
    found = {name: item["everywhere"] for name, item in _result("devices_runtimes.json")["runtimes"].items()}
    operators = list(dict.fromkeys(name for item in found.values() for name in item))
    best = {runtime: min(item, key=lambda name: item[name]["ratio"]) for runtime, item in found.items()}

    def cell(runtime: str, name: str) -> str:
        text = f"{found[runtime][name]['ratio']:.2f}"
        return f"**{text}**" if best[runtime] == name else text

    rows = [[f"`{name}`", *(cell(runtime, name) for runtime in found)] for name in operators]
    return _rows(["operator", *found], rows)


def _minibatch() -> str:
    """The findings of the mini-batch paper, with the differences in the phases that each is about; of several seeds the first."""
    rows = []
    for found in _result("minibatch.json")["findings"]:
        phases = found["of each seed"][0]["farther by, %"]
        differences = "; ".join(f"{phase['mean']:+.1f} % ({phase['low']:+.1f} to {phase['high']:+.1f})" for phase in phases)
        rows.append([f"{found['finding']}. {found['text']}", found["metric"], found["verdict"], differences])
    return _rows(["finding", "metric", "here", "farther than the other batches"], rows)


def _fastest() -> str:
    """In how many slots each operator costs least, by runtime with a table, and how far that table is off."""
    found = {name: item for name, item in _result("devices_runtimes.json")["runtimes"].items() if "winners" in item}
    operators = list(dict.fromkeys(name for item in found.values() for name in item["costs"]))
    rows = [[f"`{name}`", *(str(item["winners"].get(name, 0)) for item in found.values())] for name in operators]
    return _rows(
        ["operator", *found],
        [
            *rows,
            ["error on held-out networks", *(f"{item['mape']:.1f} %" for item in found.values())],
            ["noise floor", *(f"{item['floor_mape']:.1f} %" for item in found.values())],
        ],
    )


def _both() -> str:
    """Searches for one runtime, for another and for both: predicted and measured, of the network's own time."""
    picks = _result("devices_both.json")["picks"]
    names = list(next(iter(picks.values()))["on"])
    rows = [
        [asked, *(f"{pick['on'][name][f'{kind}_of_network']:.2f}" for name in names for kind in ("predicted", "measured"))]
        for asked, pick in picks.items()
    ]
    return _rows(["searched for", *(f"{name}, {kind}" for name in names for kind in ("predicted", "measured"))], rows)


def _kits() -> str:
    """Tables by kits against tables made in place, by runtime."""
    found = _result("devices_kit.json")["runtimes"]
    rows = []
    for name, item in found.items():
        kit, here = item["kit"], item["in_place"]
        rows.append(
            [
                f"`{name}`",
                f"{item['network']} {'x'.join(map(str, item['input_shape']))}",
                f"{kit['error_percent']:.1f} %",
                f"{here['error_percent']:.1f} %",
                f"{item['ratio_of_errors']:.2f}",
                f"{kit['cpu_s']:.0f} s",
                f"{kit['cpu_to_make_s'] + kit['cpu_to_read_s']:.0f} s",
                f"{here['cpu_s']:.0f} s",
            ]
        )
    return _rows(["runtime", "network", "by a kit", "in place", "ratio", "on the device", "to make and read", "in place"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "latency": _latency,
    "methods": _methods,
    "growth": _growth,
    "peers": _peers,
    "cache": _cache,
    "forms": _forms,
    "contention": _contention,
    "speed": _speed,
    "copies": _copies,
    "strategies": _strategies,
    "regret": _regret,
    "sharing": _sharing,
    "fitting": _fitting,
    "inheritance": _inheritance,
    "precisions": _precisions,
    "faces": _faces,
    "claim": _claim,
    "claim_int8": _claim_int8,
    "claim_tables": _claim_tables,
    "demo": _demo,
    "refine": _refine,
    "gpus": _gpus,
    "minibatch": _minibatch,
    "quantizers": _quantizers,
    "tutorial": _tutorial,
    "results": _results,
    "runtimes": _runtimes,
    "fastest": _fastest,
    "both": _both,
    "kits": _kits,
}
"""What ``{{ table NAME }}`` stands for."""
