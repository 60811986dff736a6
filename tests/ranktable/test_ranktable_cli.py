"""``qwenlib ranktable`` from the outside: exit codes, --json, help."""

import json

import pytest
from typer.testing import CliRunner

from qwenlib.cli.main import app
from qwenlib.errors import Refused

COMMANDS = ["show", "check", "generate", "merge", "subset"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(app, ["ranktable", *map(str, arguments)])

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(command, run):
    result = run(command, "--help")
    assert result.exit_code == 0 and f"qwenlib ranktable {command}" in result.output


def test_generate_check_merge_show_subset(run, hccn, tmp_path):
    for number in (1, 2):
        hccn({card: f"192.{card % 4 + 1}.{number}.{card // 4 + 1}" for card in range(8)})
        result = run("generate", "--device_num", "[0,8)", "--server_ip", f"10.0.0.{number}")
        assert result.exit_code == 0, result.output
    names = [f"hccl_8p_01234567_10.0.0.{number}.json" for number in (1, 2)]
    assert run("merge", *names).exit_code == 0
    assert run("check", "hccl_2s_16p.json", "--file-only").exit_code == 0
    assert run("check", "hccl_2s_16p.json", "--file-only", "--profile", "finetune_7b_910a").exit_code == 0
    bad = run("check", "hccl_2s_16p.json", "--file-only", "--profile", "lora_7b_910a", "--json")
    assert bad.exit_code == 1
    assert [p["rule"] for p in json.loads(bad.stdout)["problems"]] == [24]
    shown = json.loads(run("show", "hccl_2s_16p.json", "--json").stdout)
    assert shown["table"]["server_count"] == "2" and len(shown["sha256"]) == 64
    assert run("subset", "hccl_2s_16p.json", "--nodes", "1", "--device_num", "[4,8)").exit_code == 0
    assert (tmp_path / "hccl_4p_4567_10.0.0.1.json").is_file()
    printed = run("show", "hccl_4p_4567_10.0.0.1.json")
    assert printed.exit_code == 0 and "10.0.0.1" in printed.stdout and "sha256" in printed.stdout


def test_check_tells_all_and_returns_1(run, sample_path):
    result = run("check", sample_path("v1_guide_two_nodes_wrong"), "--file-only")
    assert result.exit_code == 1
    assert "server_list[1].server_id" in result.output and "The IP is used repeatedly." in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "no.json"),
        ("show", "no.json"),
        ("generate", "--device_num", "[3,6)"),
        ("merge", "no.json"),
        ("subset", "no.json", "--nodes", "1"),
        ("check", "--root", "/nonexistent"),
        ("generate", "--server_ip", "10.0.0.1"),
    ],
)
def test_mistakes_are_refused_and_nothing_is_written(arguments, run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    result = run(*arguments)
    assert isinstance(result.exception, Refused) and list(tmp_path.iterdir()) == []


def test_inputs_are_never_overwritten_and_cards_are_plain_numbers(run, make_table, write, tmp_path):
    one, two = write(make_table(1), "a.json"), write(make_table(1, first="10.0.0.2"), "b.json")
    two.write_text(two.read_text().replace("192.", "172."))
    before = one.read_bytes()
    for arguments, told in (
        (("merge", one, two, "--output", one), "is an input"),
        (("subset", one, "--output", one), "is an input"),
        (("subset", one, "--devices", "\u0664"), "physical card ids"),
        (("subset", one, "--devices", "4_4"), "physical card ids"),
        (("subset", one, "--devices", "4,4"), "twice"),
        (("subset", one, "--servers", ","), "server_id"),
        (("check", one, "--wait_seconds", "nan"), "wait_seconds"),
        (("check", "hccl"), "there is no rank table hccl."),
    ):
        result = run(*arguments)
        assert isinstance(result.exception, Refused) and told in str(result.exception), result.output
    assert one.read_bytes() == before and {item.name for item in tmp_path.iterdir()} == {"a.json", "b.json"}


def test_an_output_that_hccl_would_not_read_is_refused(run, sample_path):
    result = run("merge", sample_path("v1_notebook_one_card"), "--output", "table.txt")
    assert isinstance(result.exception, Refused) and ".json" in str(result.exception)
