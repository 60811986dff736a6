"""The doctor: every check runs, each finding has a reason, the report has an exit code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qwenlib import profile as profiles
from qwenlib.cli.main import app
from qwenlib.doctor import FAIL, OK, SKIP, WARN, Context, diagnose, needs, run, software
from qwenlib.errors import WorkFailed

LORA = "lora_7b_910a"


def look(root, profile=LORA, environ=None, **more):
    """``{name: finding}`` of a look at ``root`` without import probes."""
    context = Context(profiles.load(profile), root, {"PATH": os.environ["PATH"], **(environ or {})}, **more)
    context.probe_imports = False
    report = diagnose(context)
    return {item.name: item for item in report.findings}, report


def test_a_plain_host_needs_no_ascend(tmp_path):
    found, report = look(tmp_path, "smoke", output=tmp_path, work=tmp_path)
    hardware = ("chips", "chip health", "HBM in use", "occupied cards", "device nodes", "driver", "firmware", "CANN")
    assert {found[name].state for name in hardware} == {SKIP}
    assert "no Ascend here" in found["chips"].reason
    assert found["rank table"].state == SKIP and "nothing is simulated" in found["rank table"].reason
    assert report.place == "plain host"


def test_findings_are_numbered_and_have_reasons(tmp_path):
    _, report = look(tmp_path, "smoke")
    assert [item.number for item in report.findings] == list(range(1, len(report.findings) + 1))
    assert all(item.reason and item.state in (OK, FAIL, WARN, SKIP) for item in report.findings)
    assert sum(report.counts.values()) == len(report.findings)
    folded = report.text(width=100)
    assert folded.split() == report.text().split()
    assert max(map(len, folded.splitlines())) <= 100 or any(len(word) > 85 for word in folded.split())


def test_a_free_910a_notebook(fake_root):
    found, _ = look(fake_root(table="v1_guide_eight_cards"))
    for name in ("chips", "chip health", "HBM in use", "occupied cards", "device nodes", "driver", "CANN", "memory"):
        assert found[name].state == OK, found[name]
    assert "8 x 910PremiumA" in found["chips"].reason and "first-generation" in found["chips"].reason
    assert "notebook" in found["place"].reason and found["notebook lease"].state == WARN
    assert "8 ranks" in found["rank table"].reason and found["rank table"].state in (OK, WARN)
    assert "persistent folder" in found and "cache folder" in found


def test_occupied_cards_fail_and_say_by_whom(fake_root):
    found, report = look(fake_root("busy"))
    assert found["occupied cards"].state == FAIL and "pid 5139 (python) with 31913 MB" in found["occupied cards"].reason
    assert "EJ0001" in found["occupied cards"].reason and "/proc" in found["occupied cards"].reason
    assert "npu 7: 31842/32768 MB" in found["HBM in use"].reason
    with pytest.raises(WorkFailed, match="occupied cards"):
        report.stop()


def test_too_few_cards_for_the_profile(fake_root):
    found, _ = look(fake_root("one"))
    assert found["chips"].state == FAIL and "8 ranks" in found["chips"].reason and "npu ids 3" in found["chips"].reason


def test_one_card_is_enough_for_inference(fake_root):
    found, _ = look(fake_root("one"), "infer_7b_910a")
    assert found["chips"].state == OK and found["rank table"].state == SKIP
    assert "davinci 3 (physical" in found["device nodes"].reason


def change(root, old, new):
    path = root / "npu-smi.txt"
    path.write_text(path.read_text().replace(old, new))
    return root


def test_ill_chips_and_second_generation(fake_root):
    root = change(fake_root(), "| 3     910PremiumA         | OK ", "| 3     910PremiumA         | Alarm ")
    assert look(root)[0]["chip health"].state == FAIL
    change(root, "910PremiumA", "910B3      ")
    found, _ = look(root)
    assert found["chips"].state == WARN and "Atlas A2" in found["chips"].reason


@pytest.mark.parametrize(
    ("body", "told", "more"),
    [
        ("sleep 60", "did not answer within 0.5 s", {"timeout": 0.5}),
        ("echo 'ret is -8005'; exit 1", "-8005", {}),
        ("echo garbage", "garbage", {}),
    ],
)
def test_a_broken_npu_smi_fails_and_the_rest_still_runs(body, told, more, fake_root):
    root = fake_root()
    (root / "usr/local/bin/npu-smi").write_text(f"#!/bin/sh\n{body}\n")
    found, report = look(root, **more)
    assert found["chips"].state == FAIL and told in found["chips"].reason
    assert len(report.findings) > 20 and found["CANN"].state == OK


def test_wrong_cann_and_missing_nodes(fake_root):
    root = fake_root(cann="8.1.RC1")
    (root / "dev/davinci7").unlink()
    (root / "dev/devmm_svm").unlink()
    found, _ = look(root, environ={"MA_NUM_GPUS": "8"})
    assert found["CANN"].state == FAIL and "8.1.RC1" in found["CANN"].reason and "7.0" in found["CANN"].reason
    nodes = found["device nodes"]
    assert nodes.state == WARN and "/dev/devmm_svm" in nodes.reason and "MA_NUM_GPUS says 8" in nodes.reason


def test_a_bad_rank_table_is_told_with_paths(fake_root):
    root = fake_root(table="v1_duplicate_device_id")
    found, _ = look(root)
    assert found["rank table"].state == FAIL and "server_list[0].device[1].device_id" in found["rank table"].reason


def test_a_table_of_other_addresses_is_told(fake_root):
    root = fake_root(table="v1_guide_eight_cards")
    path = root / "user/config/nbstart_hccl.json"
    path.write_text(path.read_text().replace("192.3.27.7", "192.3.27.9"))
    found, _ = look(root)
    assert found["rank table"].state == FAIL and "192.3.27.7" in found["rank table"].reason


def test_an_unfinished_rank_table_is_a_warning(fake_root):
    root = fake_root(table="v1_guide_eight_cards")
    (root / "user/config/nbstart_hccl.json").write_text('{"status": "initializing"}')
    found, _ = look(root)
    assert found["rank table"].state == WARN and "initializing" in found["rank table"].reason


@pytest.mark.parametrize(
    ("text", "told"), [("\x00\xff garbage", "not JSON"), ('{"status": done}', "not JSON"), ("[1, 2]", "found list")]
)
def test_a_damaged_rank_table_is_not_waited_for(text, told, fake_root):
    root = fake_root(table="v1_guide_eight_cards")
    (root / "user/config/nbstart_hccl.json").write_text(text)
    finding = look(root)[0]["rank table"]
    assert finding.state == FAIL and told in finding.reason and "01_env waits" not in finding.reason


def test_a_rank_table_in_a_folder_that_is_not_there_fails(fake_root, tmp_path):
    finding = look(fake_root(), rank_table=str(tmp_path / "no" / "t.json"))[0]["rank table"]
    assert finding.state == FAIL and "correct the path" in finding.reason
    assert look(tmp_path / "root", rank_table=str(tmp_path / "t.json"))[0]["rank table"].state == WARN


def test_left_over_rank_variables_are_not_held_against_the_table(fake_root):
    environ = {"RANK_ID": "99", "DEVICE_ID": "7"}
    assert look(fake_root(table="v1_guide_eight_cards"), environ=environ)[0]["rank table"].state == WARN


def test_the_lease_is_compared_with_the_estimated_run_time(fake_root):
    root = fake_root()
    lease = look(root)[0]["notebook lease"]
    assert lease.state == WARN and re.search(r"estimated at \d+\.\d h \(lora on the 52002 rows of alpaca", lease.reason)
    assert "estimated at 9.0 h. Renew" in look(root, run_seconds=9 * 3600)[0]["notebook lease"].reason
    assert look(root, run_seconds=600)[0]["notebook lease"].state == OK
    assert "not known" in look(root, "infer_7b_910a")[0]["notebook lease"].reason


def test_a_file_is_no_output_folder(tmp_path):
    (tmp_path / "file").touch()
    finding = look(tmp_path, "smoke", output=tmp_path / "file" / "run")[0]["output folder"]
    assert finding.state == FAIL and "is a file" in finding.reason


def test_a_source_tree_of_another_branch_is_told(tmp_path, monkeypatch):
    from qwenlib.doctor import software

    monkeypatch.setattr(software, "installed", lambda name: "")
    (tmp_path / "mindformers").mkdir()
    found, _ = look(tmp_path, environ={"PYTHONPATH": str(tmp_path)})
    assert found["package mindformers"].state == WARN and "git checkout r1.0.a" in found["package mindformers"].reason
    (tmp_path / "research/qwen1_5").mkdir(parents=True)
    (tmp_path / "research/qwen1_5/run_qwen1_5_7b_lora.yaml").touch()
    found, _ = look(tmp_path, environ={"PYTHONPATH": str(tmp_path)})
    assert found["package mindformers"].state == found["PYTHONPATH"].state == OK


def test_little_memory_fails(fake_root):
    root = fake_root(memory_gib=96)
    found, _ = look(root)
    assert (
        found["memory"].state == FAIL and "96 GiB" in found["memory"].reason and "8 rank(s)" in found["memory"].reason
    )
    cgroup = root / "sys/fs/cgroup"
    cgroup.mkdir(parents=True)
    (cgroup / "memory.max").write_text(f"{3 * 2**30}\n")
    (cgroup / "memory.current").write_text(f"{1 * 2**30}\n")
    found, _ = look(root, "smoke")
    assert found["memory"].state == FAIL and "2 GiB available" in found["memory"].reason


def test_needs_of_the_7b_flow():
    lora, full = profiles.load(LORA), profiles.load("finetune_7b_910a")
    assert needs.parameters(lora.model) == 7_721_324_544
    assert dict(needs.disk(full))["finetune: 3 full checkpoints"] == pytest.approx(3 * 92.7e9, rel=0.01)
    assert needs.memory(lora)[0][1] > 8 * 15.4e9
    assert needs.memory(profiles.load("infer_7b_910a"))[0][1] < 32e9


def test_shadowing_files_and_source_trees(tmp_path):
    (tmp_path / "code.py").touch()
    for name in ("a", "b"):
        (tmp_path / name / "mindformers").mkdir(parents=True)
    environ = {"PYTHONPATH": f"{tmp_path}/a:{tmp_path}/b"}
    found, _ = look(tmp_path, "smoke", environ, work=tmp_path)
    assert found["work folder"].state == FAIL and "code.py" in found["work folder"].reason
    assert found["PYTHONPATH"].state == FAIL and "several" in found["PYTHONPATH"].reason
    found, _ = look(tmp_path, "smoke", {"PYTHONPATH": "/no/such/folder"})
    assert found["PYTHONPATH"].state == WARN


def test_pip_mindformers_beside_a_source_tree(tmp_path, monkeypatch):
    from qwenlib.doctor import software

    (tmp_path / "mindformers").mkdir()
    monkeypatch.setattr(software, "installed", lambda name: "1.0.2" if name == "mindformers" else "")
    found, _ = look(tmp_path, LORA, {"PYTHONPATH": str(tmp_path)})
    assert found["PYTHONPATH"].state == FAIL and "pip uninstall -y mindformers" in found["PYTHONPATH"].reason


def test_versions_are_compared_with_the_table(tmp_path, monkeypatch):
    from qwenlib.doctor import software

    have = {"mindspore": "2.2.14", "mindformers": "1.0.2", "mindpet": "1.0.3", "acctransformer": ""}
    monkeypatch.setattr(software, "installed", lambda name: have.get(name, ""))
    found, _ = look(tmp_path)
    states = [found[f"package {name}"].state for name in have]
    assert states == [WARN, OK, OK, FAIL] and "2.2.13" in found["package mindspore"].reason
    have["mindspore"], have["acctransformer"] = "2.3.0", "1.0.0"
    found, _ = look(tmp_path)
    assert [found[f"package {name}"].state for name in have] == [FAIL, OK, OK, OK]


def test_python_is_judged_by_the_target(tmp_path, monkeypatch):
    for version, target, state in (
        ((3, 9, 18), LORA, OK), ((3, 8, 1), LORA, WARN), ((3, 11, 7), LORA, FAIL), ((3, 11, 7), "smoke", OK),
        ((3, 12, 0), "smoke", FAIL),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "version_info", version)
        assert look(tmp_path, target)[0]["Python"].state == state
        monkeypatch.undo()


def test_libgomp_on_aarch64(tmp_path, monkeypatch):
    import platform

    from qwenlib.doctor import software

    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(software, "installed", lambda name: "2.1.0")
    assert look(tmp_path)[0]["libgomp static TLS"].state == WARN
    found, _ = look(tmp_path, environ={"LD_PRELOAD": "/x/libgomp.so.1"})
    assert found["libgomp static TLS"].state == OK


def test_open_files(tmp_path, monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 65536))
    assert look(tmp_path, "smoke")[0]["ulimit -n"].state == WARN


def test_mindformers_hidden_mode_and_secrets(tmp_path):
    found, report = look(tmp_path, "smoke", {"S3_ACCESS_KEY_ID": "AKIDEXAMPLE", "S3_SECRET_ACCESS_KEY": "hunter2"})
    assert found["MindFormers' ModelArts mode"].state == WARN
    assert "S3_ACCESS_KEY_ID" in found["secrets"].reason
    for text in (report.text(), json.dumps(report.to_dict())):
        assert "hunter2" not in text and "AKIDEXAMPLE" not in text


def test_a_boot_file_started_once_per_card_fails(tmp_path):
    found, _ = look(tmp_path, "smoke", {"MA_VJ_NAME": "j", "RANK_ID": "2", "RANK_SIZE": "8"})
    assert found["boot file"].state == FAIL


def test_a_check_that_breaks_does_not_hide_the_others(tmp_path):
    def broken(context):
        raise ValueError("boom")
        yield

    report = diagnose(Context(root=tmp_path, probe_imports=False), [broken, *run.CHECKS])
    assert report.findings[0].state == FAIL and "boom" in report.findings[0].reason
    assert len(report.findings) > 20


def test_imports_are_probed_in_a_child(tmp_path, monkeypatch):
    from qwenlib.doctor import software

    for name, body in (
        ("mindspore", "import time; time.sleep(60)"),
        ("mindformers", "raise ImportError('no such op')"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(body)
    monkeypatch.setattr(software, "installed", lambda name: "1.0")
    probes = software.imports(Context(profiles.load(LORA), tmp_path, {**os.environ, "PYTHONPATH": str(tmp_path)}))
    with monkeypatch.context() as patch:
        patch.setattr(software, "PROBE_SECONDS", 1.0)
        slow = next(probes)
    broken, _ = probes
    assert (slow.state, broken.state) == (FAIL, FAIL)
    assert "more than 1 s" in slow.reason and "no such op" in broken.reason


def test_cli_exit_codes_and_json(fake_root, tmp_path):
    command = [sys.executable, "-m", "qwenlib", "doctor", "--no-probe", "--json", "--root", str(fake_root("busy"))]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    report = json.loads(result.stdout)  # nothing else is on stdout
    assert result.returncode == 1 and report["ok"] is False and report["profile"] == LORA
    assert {item["state"] for item in report["findings"]} >= {OK, FAIL}
    help_text = CliRunner().invoke(app, ["doctor", "--help"]).output
    assert "qwenlib doctor --profile" in help_text


@pytest.mark.parametrize(
    ("files", "state", "said"),
    [
        (("flash_attention/nn/layer/flash_attention.py",), OK, "in a process of its own"),
        ((), FAIL, "No module named 'acctransformer.flash_attention'"),
        (None, SKIP, "not installed"),
    ],
)
def test_flash_attention_is_imported_in_a_process_of_its_own(files, state, said, fake_root, tmp_path, monkeypatch):
    monkeypatch.setattr(software, "installed", lambda name: "")  # whatever this machine has
    tree = tmp_path / "train"
    for name in files or ():
        path = tree / "acctransformer" / name
        path.parent.mkdir(parents=True)
        path.write_text("class FlashAttention: ...\n")
    if files is not None:
        (tree / "acctransformer").mkdir(parents=True, exist_ok=True)
    root = fake_root("eight")
    context = Context(profiles.load(LORA), root=root, environ={"PYTHONPATH": str(tree), "PATH": ""}, probe_imports=True)
    found = {item.name: item for item in software.imports(context)}["import acctransformer"]
    assert (found.state, said in found.reason) == (state, True), found.reason
    off = Context(profiles.load(LORA, ["model.use_flash_attention=false"]), root=root, environ={}, probe_imports=True)
    assert "import acctransformer" not in {item.name for item in software.imports(off)}


@pytest.mark.stack
def test_this_machine_has_no_fail_for_the_smoke_profile():
    report = diagnose(Context())
    assert not report.fails, report.text()
    assert any(item.name == "import mindformers" and item.state == OK for item in report.findings)


LINK = '*link*) echo "link status: {}";;\n*tls*) echo "dev_id:0, tls switch[0](0:disable, 1:enable), tls";;'


@pytest.mark.parametrize(
    ("link", "profile", "state"),
    [("UP", LORA, OK), ("DOWN", LORA, WARN), ("DOWN", "finetune_7b_910a", FAIL), ("UP", "infer_7b_910a", SKIP)],
)
def test_nic_links(link, profile, state, fake_root):
    root = fake_root()
    tool = root / "usr/local/Ascend/driver/tools/hccn_tool"
    tool.write_text(f'#!/bin/sh\ncase "$*" in\n{LINK.format(link)}\nesac\n')
    finding = look(root, profile)[0]["NIC links"]
    assert finding.state == state and (state == SKIP or "TLS switch 0" in finding.reason)
    tool.unlink()
    assert look(root, profile)[0]["NIC links"].state == SKIP


def test_an_ill_chip_is_asked_why(fake_root):
    root = change(fake_root(), "| 3     910PremiumA         | OK ", "| 3     910PremiumA         | Warning ")
    tool = root / "usr/local/bin/npu-smi"
    answer = 'if [ "$2" = -t ]; then echo " Error Code : 0x80E18401"; echo " Error Information : HBM ecc"; exit; fi'
    tool.write_text(tool.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\n{answer}\n"))
    finding = look(root)[0]["chip health"]
    assert finding.state == WARN and "npu 3: Warning (0x80E18401, HBM ecc)" in finding.reason


def test_firmware_in_a_container_is_asked_from_the_card(fake_root, sample):
    root = fake_root()
    assert look(root)[0]["firmware"].state == SKIP
    tool, board = root / "usr/local/bin/npu-smi", root / "board.txt"
    board.write_text(sample("npu_smi_t.txt"))
    tool.write_text(
        tool.read_text().replace("#!/bin/sh\n", f'#!/bin/sh\n[ "$3" = board ] && exec /bin/cat "{board}"\n')
    )
    firmware = look(root)[0]["firmware"]
    assert firmware.state == OK and firmware.reason.startswith("7.1.0.7.220 (from npu-smi")


@pytest.mark.parametrize(("firmware", "state"), [("7.1.0.4.220", OK), ("7.7.0.1.231", WARN), ("1.0", WARN)])
def test_firmware_is_compared_with_what_the_driver_names(firmware, state, fake_root):
    root = fake_root()
    (root / "usr/local/Ascend/firmware").mkdir()
    (root / "usr/local/Ascend/firmware/version.info").write_text(f"Version={firmware}\nfirmware_version=1.0\n")
    assert look(root)[0]["firmware"].state == state
