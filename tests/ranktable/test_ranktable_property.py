"""From any valid table: every mutation is accepted because the rules still hold, or told with the mutated place."""

import copy
import json
import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenlib.errors import Refused
from qwenlib.ranktable import check, load, merge, parse, subset, write_table

CARD_SETS = [(0,), (5,), (0, 1), (6, 7), (0, 1, 2, 3), (4, 5, 6, 7), tuple(range(8))]
SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def tables(draw, most=4):
    """A valid v1.0 document: 1 to 4 servers, any legal set of cards, host names or addresses, keys in any order."""
    count, cards = draw(st.integers(1, most)), draw(st.sampled_from(CARD_SETS))
    named = draw(st.booleans())
    servers, rank = [], 0
    for number in range(count):
        devices = []
        for card in cards:
            address = f"192.{card % 4 + 1}.{number}.{card // 4 + 1}"
            devices.append({"device_id": str(card), "device_ip": address, "rank_id": str(rank)})
            rank += 1
        entry = {"server_id": f"node_{number}" if named else f"10.0.0.{number + 9}", "device": devices}
        if draw(st.booleans()):
            entry["host_nic_ip"] = "reserve"
        servers.append(entry)
    document = {"version": "1.0", "server_count": str(count), "server_list": servers, "status": "completed"}
    keys = draw(st.permutations(list(document)))
    return {key: document[key] for key in keys}


@st.composite
def v0_tables(draw):
    """A valid v0 document: pods in any order, one or two on a server."""
    count, split = draw(st.integers(1, 3)), draw(st.booleans())
    pods = []
    for number in range(count):
        devices = [{"device_id": str(c), "device_ip": f"192.{c % 4 + 1}.{number}.{c // 4 + 1}"} for c in range(8)]
        for half in (devices[:4], devices[4:]) if split else (devices,):
            pods.append({"pod_name": f"job-worker-{len(pods)}", "server_id": f"10.0.0.{number}", "devices": half})
    total = str(8 * count)
    pods_shown = draw(st.permutations(pods))
    group = {"group_name": "w", "device_count": total, "instance_count": str(len(pods)), "instance_list": pods_shown}
    return {"status": "completed", "group_count": "1", "group_list": [group]}


def places(node, path=""):
    """``(path, parent, key)`` of every place in a document."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items):
        here = f"{path}[{key}]" if isinstance(node, list) else f"{path}.{key}".lstrip(".")
        yield here, node, key
        yield from places(value, here)


def is_text(value):
    return isinstance(value, str)


# What can happen to one place: name -> (applies to, makes the new value). 40 kinds with those of whole places below.
VALUE_MUTATIONS = {
    "to null": (lambda v: True, lambda v, r: None),
    "to a bare number": (is_text, lambda v, r: int(v) if v.isdigit() else 7),
    "to a fraction": (is_text, lambda v, r: 1.5),
    "to true": (lambda v: True, lambda v, r: True),
    "to a list": (is_text, lambda v, r: [v]),
    "to an object": (is_text, lambda v, r: {"value": v}),
    "list to an object": (lambda v: isinstance(v, list), lambda v, r: {}),
    "object to a text": (lambda v: isinstance(v, dict), lambda v, r: "x"),
    "object emptied": (lambda v: isinstance(v, dict), lambda v, r: {}),
    "text emptied": (is_text, lambda v, r: ""),
    "blank": (is_text, lambda v, r: " "),
    "space before": (is_text, lambda v, r: " " + v),
    "space behind": (is_text, lambda v, r: v + " "),
    "newline behind": (is_text, lambda v, r: v + "\n"),
    "minus": (is_text, lambda v, r: "-" + v),
    "plus": (is_text, lambda v, r: "+" + v),
    "leading zero": (is_text, lambda v, r: "0" + v),
    "hexadecimal": (is_text, lambda v, r: "0x" + v),
    "other digits": (is_text, lambda v, r: "\u0663"),
    "superscript digit": (is_text, lambda v, r: "\u00b2"),
    "plus one": (lambda v: is_text(v) and v.isdigit(), lambda v, r: str(int(v) + 1)),
    "times ten": (lambda v: is_text(v) and v.isdigit(), lambda v, r: str(int(v) * 10 + 8)),
    "huge": (is_text, lambda v, r: "9" * 5000),
    "very long": (is_text, lambda v, r: "n" * 300),
    "64 characters": (is_text, lambda v, r: "n" * 64),
    "placeholder": (is_text, lambda v, r: "xx.xx.xx.xx"),
    "broadcast address": (is_text, lambda v, r: "255.255.255.255"),
    "two addresses": (is_text, lambda v, r: f"{v},{v}"),
    "IPv6": (is_text, lambda v, r: "fe80::1"),
    "upper case": (is_text, lambda v, r: v.upper()),
    "surrogate": (is_text, lambda v, r: "\ud800"),
    "list emptied": (lambda v: isinstance(v, list), lambda v, r: []),
    "list reversed": (lambda v: isinstance(v, list), lambda v, r: v[::-1]),
    "list doubled": (lambda v: isinstance(v, list), lambda v, r: v + copy.deepcopy(v)),
    "list shortened": (lambda v: isinstance(v, list), lambda v, r: v[:-1]),
    "list nested": (lambda v: isinstance(v, list), lambda v, r: [v]),
}
PLACE_MUTATIONS = ("deleted", "renamed", "copied from a neighbour", "unknown key added")
KINDS = [*VALUE_MUTATIONS, *PLACE_MUTATIONS]


def spots_for(document, kind):
    """The places of a document to which a kind of mutation applies."""
    spots = list(places(document))
    if kind in VALUE_MUTATIONS:
        applies, _ = VALUE_MUTATIONS[kind]
        return [spot for spot in spots if applies(spot[1][spot[2]])]
    if kind in ("renamed", "unknown key added"):
        return [spot for spot in spots if isinstance(spot[1], dict)]
    return spots


def mutate(document, kind, chance, number=None):
    """Change one place (the ``number``-th that the kind applies to); returns its path, or None for no such place."""
    spots = spots_for(document, kind)
    if not spots:
        return None
    path, parent, key = chance.choice(spots) if number is None else spots[number]
    if kind in VALUE_MUTATIONS:
        parent[key] = VALUE_MUTATIONS[kind][1](parent[key], chance)
    elif kind == "deleted":
        del parent[key]
    elif kind == "renamed":
        parent[f"{key}_"] = parent.pop(key)
    elif kind == "unknown key added":
        parent["note"] = "x"
    else:
        name = key if isinstance(parent, dict) else None
        alike = [spot for spot in spots if spot[2] == name and spot[1] is not parent]
        if not alike:
            return None
        _, other, other_key = chance.choice(alike)
        parent[key] = copy.deepcopy(other[other_key])
    return path


def near(path, problem):
    """Whether a problem is told at the place or in the object around it, or its sentence names one of them."""
    around = path[: max(path.rfind("."), path.rfind("["))]
    for where in problem.path.split(" + "):
        if where == path or where.startswith((f"{path}.", f"{path}[")):
            return True
        if around and (where == around or where.startswith((f"{around}.", f"{around}["))):
            return True
    return any(re.search(re.escape(name) + r"(?!\w)", problem.message) for name in (path, around or path))


def judge(document, path, tmp_path):
    """Accepted and consistent, or refused with the place named; the checker and the reader agree; no traceback.

    Returns whether it was refused.
    """
    file = tmp_path / "mutated.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    report = check(file, here=False)
    assert report.text() and report.to_dict()
    json.dumps(report.to_dict())
    try:
        table = load(file)
    except Refused as refusal:
        assert report.fails, f"refused by load only: {refusal}"
        assert any(near(path, item) for item in report.problems if item.level == "FAIL" or item.rule == 31), (
            f"{path} is not named in: {refusal}"
        )
        told = [item.path for item in report.fails[:12] if item.path]
        assert all(place in str(refusal) for place in told) or report.fails[0].rule == 33
        return True
    assert not report.fails, report.text()
    again = parse(table.to_dict())  # what was accepted obeys every rule, as a table written by us
    assert again.ranks == table.ranks
    return False


HARMLESS = {"unknown key added", "list reversed"}
"""Kinds that never break a small table."""


@pytest.mark.parametrize("version", ["v1.0", "v0"])
def test_every_kind_of_mutation_at_every_place(version, tmp_path):
    cards = [[{"device_id": str(c), "device_ip": f"192.{c + 1}.{s}.1"} for c in (0, 1)] for s in (0, 1)]
    if version == "v1.0":
        servers = [{"server_id": f"n{s}", "device": cards[s], "host_nic_ip": "reserve"} for s in (0, 1)]
        for rank, card in enumerate([*cards[0], *cards[1]]):
            card["rank_id"] = str(rank)
        whole = {"version": "1.0", "server_count": "2", "server_list": servers, "status": "completed"}
    else:
        pods = [{"pod_name": f"j-{s}", "server_id": f"n{s}", "devices": cards[s]} for s in (0, 1)]
        group = {"group_name": "g", "device_count": "4", "instance_count": "2", "instance_list": pods}
        whole = {"status": "completed", "group_count": "1", "group_list": [group]}
    refused = dict.fromkeys(KINDS, 0)
    for kind in KINDS:
        for number in range(len(spots_for(whole, kind))):
            document = copy.deepcopy(whole)
            path = mutate(document, kind, random.Random(1), number)
            if path is not None:
                refused[kind] += judge(document, path, tmp_path)
    assert len(KINDS) >= 30 and {kind for kind in KINDS if not refused[kind]} == HARMLESS


@pytest.mark.parametrize("kind", KINDS)
@SETTINGS
@given(data=st.data())
def test_v1_mutations(kind, data, tmp_path):
    document = copy.deepcopy(data.draw(tables()))
    path = mutate(document, kind, random.Random(data.draw(st.integers(0, 2**32))))
    if path is not None:
        judge(document, path, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@settings(SETTINGS, max_examples=10)
@given(data=st.data())
def test_v0_mutations(kind, data, tmp_path):
    document = copy.deepcopy(data.draw(v0_tables()))
    path = mutate(document, kind, random.Random(data.draw(st.integers(0, 2**32))))
    if path is not None:
        judge(document, path, tmp_path)


@SETTINGS
@given(document=tables())
def test_valid_tables_are_accepted_and_round_trip(document, tmp_path):
    table = parse(document)
    assert parse(table.to_dict()) == table
    path = write_table(table, tmp_path / "t.json")
    assert load(path) == table and not check(path, here=False).fails


@SETTINGS
@given(document=v0_tables())
def test_v0_conversion_is_valid_and_independent_of_pod_order(document):
    table = parse(document)
    instances = document["group_list"][0]["instance_list"]
    instances.sort(key=lambda item: item["pod_name"])
    assert parse(table.to_dict()).to_dict() == parse(document).to_dict()


@SETTINGS
@given(document=tables(), seed=st.integers(0, 2**32))
def test_merge_does_not_depend_on_order_and_subset_takes_it_apart(document, seed):
    whole = parse(document)
    parts = [subset(whole, [server.server_id]) for server in whole.servers]
    random.Random(seed).shuffle(parts)
    merged = merge(parts)
    assert merged == merge(parts[::-1])
    assert {s.server_id for s in merged.servers} == {s.server_id for s in whole.servers}
    for server in whole.servers:
        assert subset(merged, [server.server_id]).to_dict() == subset(whole, [server.server_id]).to_dict()


@settings(SETTINGS, max_examples=60)
@given(raw=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_random_bytes_never_give_a_traceback(raw, tmp_path):
    path = tmp_path / "random.json"
    path.write_bytes(raw)
    assert check(path, here=False).fails
    with pytest.raises(Refused):
        load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["server_list", "group_list", "device", "devices", "instance_list", "status", "device_ip"]),
            inner,
        )
    ),
    max_leaves=12,
)


@settings(SETTINGS, max_examples=150)
@given(document=JSON)
def test_random_json_never_gives_a_traceback(document, tmp_path):
    path = tmp_path / "random.json"
    path.write_text(json.dumps(document))
    assert check(path, here=False).fails
