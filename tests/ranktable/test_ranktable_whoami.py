"""Which server this host is, and the environment of its ranks."""

import dataclasses
import os

import pytest

from qwenlib import profile as profiles
from qwenlib.errors import Refused, WorkFailed
from qwenlib.ranktable import RankTable, load, parse, rank_environments, who_am_i, write_table
from qwenlib.ranktable.layout import resolve_layout
from qwenlib.ranktable.show import environment_frame, figure, frame, shared, text

V0 = "v0_two_nodes_out_of_order"


@pytest.mark.parametrize(
    ("environ", "addresses", "server"),
    [
        ({"MA_CURRENT_HOST_IP": "10.0.0.3"}, [], 2),
        ({"MA_CURRENT_IP": "10.0.0.2"}, [], 1),
        ({"VC_TASK_INDEX": "10"}, [], 10),
        ({"HOSTNAME": "modelarts-job-1-worker-10"}, [], 10),
        ({"HOSTNAME": "modelarts-job-1-worker-1.modelarts-job-1"}, [], 1),
        ({"MA_CURRENT_INSTANCE_NAME": "modelarts-job-2-worker-11"}, [], 11),
        ({"MA_CURRENT_HOST_IP": "1.2.3.4", "VC_TASK_INDEX": "4"}, ["10.0.0.1"], 4),
        ({}, ["127.0.0.1", "10.0.0.6"], 5),
    ],
)
def test_v1_servers_are_recognised(environ, addresses, server, make_table):
    me = who_am_i(parse(make_table(12)), environ, addresses)
    assert me.server.server_id == f"10.0.0.{server + 1}" and me.reason


def test_pod_names_are_compared_whole(sample):
    table = parse(sample(V0))
    me = who_am_i(table, {"BATCH_TASK_CURRENT_INSTANCE": "fake-job-pod-1"}, [])
    assert (me.server.server_id, me.pod) == ("10.19.1.79", "fake-job-pod-1")
    assert who_am_i(table, {"BATCH_TASK_CURRENT_INSTANCE": "fake-job-pod-10"}, []).server is None


def test_nothing_is_guessed(make_table):
    me = who_am_i(parse(make_table(2)), {"VC_TASK_INDEX": "7"}, ["10.9.9.9"])
    assert me.server is None and "10.9.9.9" in me.reason and "the table has 2 server(s)" in me.reason


def test_the_only_server_is_taken_with_a_warning(make_table):
    me = who_am_i(parse(make_table(1)), {}, ["10.9.9.9"])
    assert me.server is not None and "nothing here proves" in me.warning
    me = who_am_i(parse(make_table(1)), {"MA_CURRENT_HOST_IP": "10.5.5.5"}, [])
    assert "the platform calls this host 10.5.5.5" in me.warning


@pytest.mark.parametrize("card", [3, 4])
def test_one_card_of_many_is_logical_0(card, make_table):
    table = parse(make_table(2, (card,)))
    me = who_am_i(table, {"VC_TASK_INDEX": "1"}, [])
    [environment] = rank_environments(table, me, "/t.json", nodes=[card])
    assert (environment["RANK_ID"], environment["DEVICE_ID"]) == ("1", "0")


def test_device_id_is_logical_in_a_one_card_container(sample_path):
    path = sample_path("v1_one_card_device_4")
    table = load(path)
    [environment] = rank_environments(table, who_am_i(table, {}, []), path, nodes=[4])
    assert environment == {"DEVICE_ID": "0"}  # one rank: no table, no RANK_ID


def test_device_id_counts_the_cards_of_the_container(make_table):
    table = parse(make_table(2, (4, 5, 6, 7)))
    me = who_am_i(table, {"MA_CURRENT_HOST_IP": "10.0.0.2"}, [])
    for nodes, first in (([4, 5, 6, 7], "0"), (range(8), "4"), ([], "0")):
        found = rank_environments(table, me, "/t.json", list(nodes))
        assert [e["RANK_ID"] for e in found] == ["4", "5", "6", "7"]
        assert found[0]["DEVICE_ID"] == found[0]["ASCEND_DEVICE_ID"] == first
        assert found[0]["RANK_SIZE"] == "8" and found[0]["RANK_TABLE_FILE"] == "/t.json"
    with pytest.raises(Refused, match="only 0, 1, 2, 3 are here"):
        rank_environments(table, me, "/t.json", [0, 1, 2, 3])


def test_visible_devices_renumber_the_cards(make_table):
    table = parse(make_table(2, (4, 5, 6, 7)))
    me = who_am_i(table, {"MA_CURRENT_HOST_IP": "10.0.0.1"}, [])

    def found(picked, nodes=range(8)):
        environ = {"ASCEND_RT_VISIBLE_DEVICES": picked}
        return [item["DEVICE_ID"] for item in rank_environments(table, me, "/t.json", list(nodes), environ)]

    assert found("4,5,6,7") == found("0,1,2,3", range(4, 8)) == ["0", "1", "2", "3"]
    assert found("") == ["4", "5", "6", "7"] and found("6,7,4,5") == ["2", "3", "0", "1"]
    for bad in ("8", "a", "-1", "\u0664"):
        with pytest.raises(Refused, match="ASCEND_RT_VISIBLE_DEVICES"):
            found(bad)
    with pytest.raises(Refused, match="only 0, 1 are here"):
        found("0,1")


@pytest.mark.parametrize(("environ", "addresses"), [({"VC_TASK_INDEX": "1"}, []), ({}, ["10.0.0.2"])])
def test_the_table_of_another_job_is_suspected(environ, addresses, make_table):
    me = who_am_i(parse(make_table(2)), {"MA_CURRENT_HOST_IP": "10.5.5.5", **environ}, addresses)
    assert me.server.server_id == "10.0.0.2" and "the platform calls this host 10.5.5.5" in me.warning
    assert not who_am_i(parse(make_table(2)), environ, addresses).warning


def test_two_pods_on_one_server_have_their_own_cards(write):
    pods = [
        {"pod_name": f"j-{n}", "server_id": "10.0.0.1",
         "devices": [{"device_id": str(c), "device_ip": f"192.{c % 4 + 1}.0.{c + 1}"} for c in range(4 * n, 4 * n + 4)]}
        for n in (0, 1)
    ]  # fmt: skip
    group = {"group_name": "g", "device_count": "8", "instance_count": "2", "instance_list": pods}
    table = parse({"status": "completed", "group_count": "1", "group_list": [group]})
    me = who_am_i(table, {"MA_CURRENT_INSTANCE_NAME": "j-1"}, [])
    found = rank_environments(table, me, "/t.json", [4, 5, 6, 7])
    assert [(e["RANK_ID"], e["DEVICE_ID"]) for e in found] == [("4", "0"), ("5", "1"), ("6", "2"), ("7", "3")]


def test_the_users_connect_timeout_is_kept(make_table):
    table = parse(make_table(1))
    me = who_am_i(table, {}, ["10.0.0.1"])
    assert rank_environments(table, me, "t", environ={})[0]["HCCL_CONNECT_TIMEOUT"] == "1800"
    assert (
        rank_environments(table, me, "t", environ={"HCCL_CONNECT_TIMEOUT": "7200"})[0]["HCCL_CONNECT_TIMEOUT"] == "7200"
    )


def test_the_cpu_needs_no_table_and_says_so(tmp_path):
    layout = resolve_layout(profiles.load("smoke"), tmp_path, root=tmp_path, environ={"RANK_ID": "3"})
    assert (layout.path, layout.ranks, layout.environments, layout.table) == ("", 2, [], None)
    assert "nothing is simulated" in layout.text() and "no Ascend" in layout.text() and layout.scrub == ["RANK_ID"]


def test_one_card_needs_no_table(tmp_path):
    layout = resolve_layout(profiles.load("infer_7b_910a"), tmp_path, root=tmp_path, environ={})
    assert (layout.path, layout.ranks, layout.device_ids) == ("", 1, [0])


def test_a_v0_table_is_converted_for_the_launch(tmp_path, sample_path):
    environ = {"MA_CURRENT_HOST_IP": "10.19.1.79", "RANK_TABLE_FILE": "/user/config", "PATH": ""}
    config = tmp_path / "root" / "user" / "config"
    config.mkdir(parents=True)
    (config / "jobstart_hccl.json").write_bytes(sample_path(V0).read_bytes())
    profile = profiles.load("finetune_7b_910a")
    layout = resolve_layout(profile, tmp_path / "stage", root=tmp_path / "root", environ=environ)
    assert load(layout.path).source_format == "v1.0" and layout.ranks == 16
    assert (layout.first_rank, layout.device_ids) == (8, list(range(8)))
    assert layout.environments[0]["RANK_TABLE_FILE"] == layout.path
    assert "sha256" in layout.text() and "converted" in layout.text()


def test_no_table_is_generated_from_the_host(tmp_path):
    (tmp_path / "etc").mkdir()
    lines = "".join(f"address_{c}=192.{c % 4 + 1}.0.{c // 4 + 1}\n" for c in range(8))
    (tmp_path / "etc" / "hccn.conf").write_text(lines)
    environ, stage = {"PATH": ""}, tmp_path / "stage"
    lora = profiles.load("lora_7b_910a")
    layout = resolve_layout(lora, stage, server_ip="10.0.0.1", root=tmp_path, environ=environ)
    assert layout.path == str(stage / "hccl_8p_01234567_10.0.0.1.json") and "generated, because" in layout.reason
    with pytest.raises(WorkFailed, match="merge"):
        resolve_layout(profiles.load("finetune_7b_910a"), stage, server_ip="10.0.0.1", root=tmp_path, environ=environ)


def test_a_bad_table_stops_the_layout_with_all_problems(tmp_path, make_table, write):
    document = make_table(1)
    document["server_list"][0]["device"][1]["device_id"] = "0"
    document["server_list"][0]["device"][3]["rank_id"] = "9"
    with pytest.raises(Refused, match=r"device\[1\].device_id.*device\[3\].rank_id|device\[3\].rank_id.*device\[1\]"):
        resolve_layout(profiles.load("lora_7b_910a"), tmp_path, write(document), environ={}, root=tmp_path)


def test_left_over_variables_of_a_rank_do_not_stop_the_layout(tmp_path, make_table, write):
    environ = {"RANK_ID": "12", "DEVICE_ID": "5", "MA_CURRENT_HOST_IP": "10.0.0.1", "PATH": ""}
    lora, path = profiles.load("lora_7b_910a"), write(make_table(1))
    layout = resolve_layout(lora, tmp_path, path, environ=environ, root=tmp_path)
    assert [item["RANK_ID"] for item in layout.environments] == list("01234567")


def test_a_mistyped_folder_is_not_waited_for(tmp_path):
    with pytest.raises(Refused, match=r"there is no folder .*nowhere"):
        resolve_layout(profiles.load("lora_7b_910a"), tmp_path, tmp_path / "nowhere" / "t.json", environ={})


def test_a_table_that_never_comes_ends_the_wait(tmp_path):
    with pytest.raises(WorkFailed, match="does not exist"):
        resolve_layout(
            profiles.load("lora_7b_910a"), tmp_path, tmp_path / "no.json", wait_seconds=0.1, environ={}, root=tmp_path
        )


@pytest.mark.parametrize("profile", ["smoke", "infer_7b_910a"])
def test_a_table_that_is_not_needed_and_cannot_be_read_stops_nobody(profile, tmp_path):
    os.mkfifo(tmp_path / "hccl.json")
    environ = {"RANK_TABLE_FILE": str(tmp_path / "hccl.json")}
    layout = resolve_layout(profiles.load(profile), tmp_path, environ=environ, root=tmp_path)
    assert layout.path == "" and layout.table is None and layout.scrub == ["RANK_TABLE_FILE"]
    with pytest.raises(Refused, match=r"rank_table .*hccl\.json cannot be read: it is no ordinary file"):
        resolve_layout(profiles.load(profile), tmp_path, tmp_path / "hccl.json", environ={}, root=tmp_path)


def test_the_table_and_the_figure_show_every_rank(make_table, tmp_path):
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    table = parse(make_table(2))
    me = who_am_i(table, {"VC_TASK_INDEX": "1"}, [])
    assert list(frame(table).index) == list(range(16))
    drawn = [item.get_text() for item in figure(table, me).axes[0].texts]
    assert all(f"rank {rank}" in drawn for rank in range(16)) and "10.0.0.2\n(this host)" in drawn
    odd = dataclasses.replace(table.servers[0], server_id="$\\x$ modelarts-job-a0978141-1712-4f9b-worker-1")
    hidden = parse(make_table(20))
    for drawing, wanted in (
        (figure(RankTable((odd,))), "8 ranks on 1 server;"),
        (figure(hidden, who_am_i(hidden, {"VC_TASK_INDEX": "18"}, [])), "20 servers, 16 of them drawn"),
        (figure(parse(make_table(1, (5,)))), "1 rank on 1 server;"),
    ):
        drawing.canvas.draw()  # a $ in a name is no formula
        assert wanted in drawing.axes[0].get_title()
    words = [item.get_text() for item in figure(hidden, who_am_i(hidden, {"VC_TASK_INDEX": "18"}, [])).axes[0].texts]
    assert "10.0.0.19\n(this host)" in words and "rank 151" in words and "10.0.0.16" not in words
    environments = rank_environments(table, me, "t")
    told = environment_frame(environments)
    assert len(told) == 8 and list(told.columns) == ["RANK_ID", "DEVICE_ID", "ASCEND_DEVICE_ID"]
    assert shared(environments)["RANK_TABLE_FILE"] == "t" and shared([{"DEVICE_ID": "0"}]) == {}
    assert list(environment_frame([{"DEVICE_ID": "0"}]).columns) == ["DEVICE_ID"]
    assert text(table).count("\n") == 16
    assert write_table(table, tmp_path / "t.json").is_file()
