"""A device profile as tables: what command line and dashboard show of the record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from app.domain.device import figure_of
from app.domain.words import amount

if TYPE_CHECKING:
    from rich.console import Console

Json = Mapping[str, Any]
Cells = list[tuple[object, ...]]
KINDS = ("conv", "depthwise", "linear")


def sheet(console: Console, device: Json) -> None:
    """Print a device profile for people."""
    from app.commands.show import table

    profile = device["profile"]
    title = profile.get("title") or device["name"]
    console.print(f"{device['name']}@{device['revision']}  {title}", markup=False, style="bold")
    console.print(table("", ("about", ""), about(profile)))
    console.print(table("\nLegal activation bits by weight bits", ("weights", *KINDS), rule_rows(profile)))
    console.print(table("\nCompute", ("pair", "GMAC/s", "attained"), compute_rows(profile)))
    console.print(table("\nFigures", ("pointer", "value", "confidence", "source"), figure_rows(profile)))
    sources = (profile.get("evidence") or {}).get("sources") or []
    for line in ("", "Sources", *sources):
        console.print(line, markup=False)


def about(profile: Json) -> Cells:
    """Return the plain facts of a profile as (name, text)."""
    rules, memory, over = profile["rules"], profile["memory"], profile.get("overheads") or {}
    multiples = ", ".join(f"{key} {value}" for key, value in (rules.get("channel_multiple") or {}).items())
    schemes = f"weights {rules.get('weight_scheme', 'symmetric')}, activations"
    forced = rules.get("forced_bits") or {}
    facts = [
        ("unit", profile.get("unit", "cpu")),
        ("toolchain", profile.get("toolchain") or "–"),
        ("activation memory", pool_text(memory["activation_pool"])),
        ("weight memory", pool_text(memory["weight_store"])),
        ("channel multiple", multiples or "1"),
        ("scales", f"{schemes} {rules.get('activation_scheme', 'asymmetric')}, {rules.get('scale', 'float')}"),
        ("input and output bits", f"{forced.get('input', 8)}, {forced.get('output', 32)}"),
        ("overheads", ", ".join(f"{key} {value:g}" for key, value in over.items() if value) or "none"),
        ("fallback", fallback_text(profile.get("fallback") or {})),
    ]
    return [*facts, ("evidence", evidence_text(profile))]


def evidence_text(profile: Json) -> str:
    """Return what a profile rests on, and how far its latency can be trusted."""
    evidence = profile.get("evidence") or {}
    error = evidence.get("error_p90")
    checked = "latency never checked" if error is None else f"nine of ten latencies within {100 * error:.3g} %"
    table = ", latency table" if profile.get("latency_table") else ""
    return f"{evidence.get('kind', 'datasheet')}{table}; {checked}"


def pool_text(pool: Json) -> str:
    """Return a memory's size, bandwidth and cache."""
    size = "no limit" if pool.get("bytes") is None else amount("weight_bytes", pool["bytes"])
    text = f"{size} at {pool['gbps']:g} GB/s"
    if not pool.get("cache_bytes"):
        return text
    speed = f" at {pool['cache_gbps']:g} GB/s" if pool.get("cache_gbps") else ""
    return f"{text}, cache {amount('weight_bytes', pool['cache_bytes'])}{speed}"


def fallback_text(fallback: Json) -> str:
    """Return what a host runs, and at what price."""
    ops = fallback.get("ops") or []
    if not ops:
        return "none"
    return f"{', '.join(ops)}: {fallback['gmacs']:g} GMAC/s, {fallback['boundary_us']:g} µs each way"


def rule_rows(profile: Json) -> Cells:
    """Return one row per weight width: the activation bits that each kind of layer may have with it."""
    pairs = profile["rules"]["pairs"]
    legal = {kind: [tuple(pair) for pair in pairs.get(kind) or pairs.get("default", [])] for kind in KINDS}
    widths = sorted({w for found in legal.values() for w, _ in found}, reverse=True)
    return [(f"w{w}", *(_activations(legal[kind], w) for kind in KINDS)) for w in widths]


def _activations(pairs: Sequence[tuple[int, ...]], width: int) -> str:
    return " ".join(f"a{a}" for w, a in sorted(pairs, reverse=True) if w == width) or "–"


def compute_rows(profile: Json) -> Cells:
    """Return the compute entries: pair, peak, and the attained share by kind."""
    rows: Cells = []
    for entry in profile["compute"]:
        shares = " ".join(f"{kind} {share:g}" for kind, share in (entry.get("eff") or {}).items())
        rows.append((f"w{entry['w']}a{entry['a']}", f"{entry['gmacs']:g}", shares or "0.5"))
    return rows


def figure_rows(profile: Json) -> Cells:
    """Return every figure of a profile with confidence and source; "–" where none is given."""
    figures = (profile.get("evidence") or {}).get("figures") or {}
    rows: Cells = []
    for pointer, value in numbers(_figured(profile)):
        figure = figure_of(figures, pointer) or {"confidence": "–", "source": "–"}
        rows.append((pointer, f"{value:g}" if isinstance(value, float) else value, *_cells(figure)))
    return rows


def _cells(figure: Json) -> tuple[object, ...]:
    return figure["confidence"], figure["source"]


def _figured(profile: Json) -> Json:
    parts = {key: profile.get(key) for key in ("compute", "memory", "overheads", "power", "fallback")}
    return {**parts, "rules": {key: profile["rules"].get(key) for key in ("channel_multiple", "sparsity")}}


def numbers(value: Any, pointer: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers inside a record, each with its JSON pointer (widths that name an entry left out)."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("w", "a"):
                yield from numbers(item, f"{pointer}/{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from numbers(item, f"{pointer}/{index}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield pointer, value


def pairs_text(profile: Any) -> str:
    """Return the legal bit pairs of a profile, shortest first."""
    pairs = {tuple(pair) for pairs in profile["rules"]["pairs"].values() for pair in pairs}
    return " ".join(f"{w}x{a}" for w, a in sorted(pairs))
