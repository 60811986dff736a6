"""The table of failures against lines as ranks print them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import EXTRA, ROWS, SAMPLES

from qwenlib.errors import Refused
from qwenlib.monitor.scan import AHEAD, LogScan, scan_bytes
from qwenlib.monitor.signatures import by_id, load_signatures, read_signatures

TABLE = load_signatures(environ={})
FAMILIES = {signature.id for signature in TABLE if signature.kind == "family"}
NOISE = b"[WARNING] ME(1:1,MainProcess):2026-01-01-00:00:00.000.000 [x.py:1] nothing\n"


def seen(line: str) -> set:
    return set(scan_bytes(b"before\n" + line.encode() + b"\n", TABLE).hits)


def test_every_row_of_the_collection_has_a_signature_and_a_sample():
    assert len(ROWS.split()) == len(set(ROWS.split())) == 58
    assert {row for row, _, _ in SAMPLES} == set(ROWS.split())


@pytest.mark.parametrize(("name", "line"), [(name, line) for _, name, line in SAMPLES])
def test_a_line_has_its_signature_and_no_other(name, line):
    assert seen(line) - FAMILIES == {name}


@pytest.mark.parametrize(("name", "line"), EXTRA)
def test_wrappers_and_unlisted_codes_are_known_by_their_component(name, line):
    assert seen(line) == {name}


def test_every_pattern_of_the_table_is_proven_by_a_sample():
    lines = [line.encode() for _, _, line in SAMPLES] + [line.encode() for _, line in EXTRA]
    idle = [
        (signature.id, match.regex.pattern)
        for signature in TABLE
        for match in signature.match
        if not any(match.find in line and match.regex.search(line) for line in lines)
    ]
    assert idle == []


@pytest.mark.parametrize(("name", "line"), [(name, line) for _, name, line in SAMPLES])
def test_sentences_are_filled_from_the_line(name, line):
    hit, signature = scan_bytes(line.encode(), TABLE).hits[name], by_id(TABLE, name)
    assert signature is not None
    for field in ("what", "cause", "advice"):
        assert "$" not in signature.say(field, hit.values)
    assert not signature.what.endswith(".") and signature.cause.endswith((".", ")")) and signature.advice.endswith(".")


def test_the_numbers_of_a_line_are_said():
    def said(name: str, field: str = "what") -> str:
        line = next(line for _, sample, line in SAMPLES if sample == name)
        return by_id(TABLE, name).say(field, scan_bytes(line.encode(), TABLE).hits[name].values)

    assert said("EI0001") == "HCCL refuses the environment variable HCCL_CONNECT_TIMEOUT"
    assert "devId is inconsistent with the local devId" in said("EI0004")
    assert said("EI0005") == "The ranks disagree about count" and "here 4096, there 2048" in said("EI0005", "cause")
    assert said("EE1001") == "The device number does not exist here (device 8)"
    assert said("HCCL-ret") == "HCCL could not start on rank 0 of server 10.1.2.3"


@pytest.mark.parametrize(
    "line",
    [
        "the process was killed, see Killedeer",
        "ModuleNotFoundError: No module named 'pandas'",
        "Malloc host memory failed",
        "file EI0006_notes.txt was read",
        "0xEI00061",
        "step 507011 of 600000",
        "loss 107001",
    ],
)
def test_lines_that_only_look_similar_have_none(line):
    assert seen(line) == set()


def test_a_healthy_training_has_no_signature():
    log = "".join(
        f"2026-11-24 03:01:27,615 - mindformers[callback.py:313] - INFO - {{ Epoch:[  1/  1], step:[{i:5d}/  240], "
        f"loss: 5.123, per_step_time: 140ms, lr: 0.005, overflow cond: {i < 12}, loss_scale: 65536.0\n"
        for i in range(240)
    )
    scan = scan_bytes(log.encode(), TABLE)
    assert scan.hits == {} and scan.error is None and scan.lines == 240


def test_the_last_line_decides_whether_the_platform_still_waits():
    waiting = "x\n[Modelarts Service Log]Wait for Rank table file ready\n\n"
    assert seen(waiting) == {"platform"} and seen(waiting + "Rank table file is ready") == set()


def test_where_and_when():
    log = NOISE * 3 + b"[ERROR] GE(9,python):2024-04-24-06:31:33.915.634 EZ9999: Inner Error!\n" + b"EZ9999: again\n"
    hit = scan_bytes(log, TABLE).hits["EZ9999"]
    assert (hit.number, hit.count, hit.chatter) == (4, 2, False) and hit.time % 60 == pytest.approx(33.915)
    undated = scan_bytes(NOISE + b"BrokenPipeError: [Errno 32] Broken pipe\n", TABLE).hits["compile"]
    assert undated.time == scan_bytes(NOISE.replace(b"nothing", b"Response is empty"), TABLE).hits["compile"].time


def test_a_warning_is_weaker_than_the_error_that_follows():
    hit = scan_bytes(b"[WARNING] x [Errno 13] Permission denied\nOSError: [Errno 13] Permission denied\n", TABLE).hits
    assert (hit["perm"].number, hit["perm"].count, hit["perm"].chatter) == (2, 2, False)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([*(line for _, _, line in SAMPLES), "", "x" * 3000, "y"]), max_size=12), st.data())
def test_portions_do_not_matter(lines, data):
    log = "\n".join(lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=8)))
    scan = LogScan(TABLE)
    for begin, end in zip([0, *cuts], [*cuts, len(log)]):
        scan.feed(log[begin:end])
    assert scan.close().hits == scan_bytes(log, TABLE).hits


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=3000), st.sampled_from([s.encode() for _, _, s in SAMPLES])), max_size=9))
def test_no_bytes_raise(pieces):
    scan = LogScan(TABLE)
    for piece in pieces:
        scan.feed(piece)
    scan.close()
    assert len(scan._rest) == 0 and all(isinstance(hit.line, str) for hit in scan.hits.values())


def test_a_line_without_an_end_takes_no_memory():
    scan = LogScan(TABLE)
    for _ in range(64):
        scan.feed(b"x" * 2**20)
    assert len(scan._rest) <= 65536 + AHEAD
    scan.feed(b" EI0006: Getting socket times out\n")
    assert set(scan.close().hits) == {"EI0006"}


def write(tmp_path, text: str) -> str:
    path = tmp_path / "more.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


OURS = "- {id: mine, what: Ours, kind: real, match: [coffee is out], cause: None left., advice: Buy some.}"


def test_a_user_adds_and_replaces_signatures(tmp_path):
    path = write(tmp_path, OURS + "\n- {id: disk, what: D, kind: note, match: [full], cause: C., advice: A.}\n")
    table = load_signatures([path], environ={})
    assert len(table) == len(TABLE) + 1 and by_id(table, "disk").what == "D"
    assert set(scan_bytes(b"[ERROR] coffee is out", table).hits) == {"mine"}
    assert by_id(load_signatures(environ={"QWENLIB_SIGNATURES": path}), "mine").advice == "Buy some."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1", "must hold a list of signatures, found dict"),
        ("- 1", "entry 1: a signature is a mapping, found int"),
        (OURS + "\n- {id: x}", "entry 2: what must be a text, found None"),
        (OURS.replace("kind: real", "kind: bad"), "entry 1 (mine): kind must be one of real, killed"),
        (OURS.replace("[coffee is out]", "[]"), "match must be a list of texts or of {find, regex}, found []"),
        (OURS.replace("[coffee is out]", "[{find: a, regex: '(b'}]"), "'(b' is no regular expression: missing )"),
        (OURS.replace("[coffee is out]", "[{regex: b}]"), "an item of match is a text or {find: text, regex: pattern}"),
        (OURS.replace("cause:", "because:"), "there is no field 'because'"),
        ("- {", "is not YAML"),
    ],
)
def test_a_wrong_file_of_signatures_is_refused(tmp_path, text, said):
    with pytest.raises(Refused) as refused:
        read_signatures(write(tmp_path, text))
    assert said in str(refused.value) and "more.yaml" in str(refused.value)


def test_a_missing_file_of_signatures_is_refused(tmp_path):
    with pytest.raises(Refused, match="cannot be read: No such file"):
        load_signatures([tmp_path / "none.yaml"])
