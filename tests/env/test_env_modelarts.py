"""Where am I, and what follows from it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwenlib import modelarts
from qwenlib.errors import Refused

JOB = {"MA_VJ_NAME": "ma-job-1", "MA_JOB_DIR": "/home/ma-user/modelarts/user-job-dir"}


def test_places(tmp_path, fake_root):
    assert modelarts.where_am_i({}, tmp_path).kind == "plain host"
    here = modelarts.where_am_i({}, fake_root())
    assert here.kind == "notebook" and "/home/ma-user/work exists" in here.reason and here.modelarts
    job = modelarts.where_am_i(JOB, tmp_path)
    assert job.kind == "training job" and "MA_VJ_NAME" in job.reason


DOCUMENTED = {
    "MA_HOME": "/home/ma-user",
    "MA_JOB_DIR": "/home/ma-user/modelarts/user-job-dir",
    "MA_MOUNT_PATH": "/home/ma-user/modelarts",
    "MA_LOG_DIR": "/home/ma-user/modelarts/log",
    "MA_SCRIPT_INTERPRETER": "",
    "WORKSPACE": "/home/ma-user/modelarts/user-job-dir/code",
    "MA_CURRENT_IP": "192.168.23.38",
    "MA_NUM_GPUS": "8",
    "MA_NUM_HOSTS": "4",
    "MA_TASK_NAME": "worker",
    "VC_TASK_INDEX": "1",
    "VC_WORKER_NUM": "4",
    "MA_CURRENT_INSTANCE_NAME": "modelarts-job-a0978141-1712-4f9b-8a83-000000000000-worker-1",
    "MA_VJ_NAME": "ma-job-a0978141-1712-4f9b-8a83-00000000000",
    "S3_ENDPOINT": "https://obs.region.myhuaweicloud.com",
    "S3_USE_HTTPS": "1",
    "S3_VERIFY_SSL": "0",
    "MA_PIP_HOST": "repo.myhuaweicloud.com",
    "MA_DETECT_TRAIN_INJECT_CODE": "1",
}
"""A training container's environment, as the documentation shows it."""


def test_the_documented_environment_of_a_training_container(tmp_path):
    assert modelarts.where_am_i(DOCUMENTED, tmp_path).kind == "training job"
    mode = modelarts.mindformers_mode(DOCUMENTED)
    assert mode.active and mode.variables == ("MA_LOG_DIR", "MA_JOB_DIR")
    assert modelarts.public_environment(DOCUMENTED) == DOCUMENTED and modelarts.secrets(DOCUMENTED) == []
    assert "once on this node" in modelarts.boot_guard(DOCUMENTED, tmp_path)
    assert modelarts.folders(DOCUMENTED, tmp_path)["persistent"].path == tmp_path / "home/ma-user/modelarts"


@pytest.mark.parametrize("name", modelarts.MINDFORMERS_VARIABLES)
def test_each_variable_flips_mindformers(name):
    mode = modelarts.mindformers_mode({name: "x"})
    assert mode.active and name in mode.text and "unset" in mode.text and "/cache/ma-user-work" in mode.text


def test_without_them_the_mode_is_off():
    mode = modelarts.mindformers_mode({"MA_VJ_NAME": "x"})
    assert not mode.active and "S3_ACCESS_KEY_ID" in mode.text


@pytest.mark.stack
def test_the_prediction_equals_mindformers_own_answer(tmp_path):
    names = [*modelarts.MINDFORMERS_VARIABLES, "MA_VJ_NAME", "S3_ENDPOINT", "RANK_TABLE_FILE"]
    code = (
        "import os, sys\n"
        "from qwenlib.engine.compat import apply_cpu_patches\n"
        "apply_cpu_patches()\n"
        "from mindformers.tools.utils import check_in_modelarts\n"
        "for name in sys.argv[1:]:\n"
        "    for value in ('x', ''):\n"
        "        os.environ[name] = value\n"
        "        print(name, repr(value), bool(check_in_modelarts()))\n"
        "    del os.environ[name]\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(modelarts.__file__).parents[1])}
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
    theirs = [line for line in done.stdout.splitlines() if line.split(" ")[0] in names]
    ours = [
        f"{name} {value!r} {modelarts.mindformers_mode({name: value}).active}" for name in names for value in ("x", "")
    ]
    assert theirs == ours, done.stderr


def test_lease(tmp_path, fake_root):
    root = fake_root()
    assert "not known" in modelarts.lease_warning({}, root)
    assert "estimated at 9.0 h" in modelarts.lease_warning({}, root, 9 * 3600)
    assert modelarts.lease_warning({}, root, 600) == "" == modelarts.lease_warning({}, tmp_path, 9 * 3600)


def test_boot_file_guard(tmp_path):
    with pytest.raises(Refused, match=r"one process per card.*RANK_ID=3 of 8"):
        modelarts.boot_guard({**JOB, "RANK_ID": "3", "RANK_SIZE": "8"}, tmp_path)
    assert "once on this node" in modelarts.boot_guard(JOB, tmp_path)
    assert modelarts.boot_guard({**JOB, "RANK_ID": "0", "RANK_SIZE": "1"}, tmp_path)
    assert modelarts.boot_guard({"RANK_ID": "3", "RANK_SIZE": "8"}, tmp_path) == ""


def test_what_jupyterlab_sets_in_every_kernel_is_no_secret():
    environ = {"JPY_SESSION_NAME": "/home/ma-user/work/01_env.ipynb", "JPY_PARENT_PID": "1", "SESSION": "x"}
    assert modelarts.secrets(environ) == ["SESSION"]


def test_secrets_are_never_shown():
    environ = {
        "S3_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "S3_SECRET_ACCESS_KEY": "hunter2",
        "OBS_AK": "AKIDEXAMPLE",
        "MA_TOKEN": "hunter2",
        "MA_PIP_URL": "https://user:hunter2@pip.example/simple",
        "MY_PASSWORD": "hunter2",
        "PWD": "/home",
        "MA_NUM_GPUS": "8",
    }
    shown = modelarts.public_environment(environ)
    assert "hunter2" not in json.dumps(shown) and "AKIDEXAMPLE" not in json.dumps(shown)
    assert shown["MA_NUM_GPUS"] == "8" and "pip.example" in shown["MA_PIP_URL"]
    assert set(modelarts.secrets(environ)) == {
        "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY", "OBS_AK", "MA_TOKEN", "MY_PASSWORD",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("https://user:p@ss@host/simple", "https://(hidden)@host/simple"),
        ("https://obs/x?AccessKeyId=hunter2&Expires=1&Signature=hunter2", "Expires=1"),
        ("https://obs/x?X-Amz-Credential=hunter2&x-obs-security-token=hunter2", "https://obs/x"),
        ('{"inputs": [{"name": "data_url", "secret_key": "hunter2", "ak": "hunter2"}]}', '"name": "data_url"'),
        ("obs://bucket/tokens/skills/part-1", "obs://bucket/tokens/skills/part-1"),
    ],
)
def test_a_secret_inside_a_value_is_hidden(value, shown):
    told = modelarts.public_environment({"MA_INPUTS": value})["MA_INPUTS"]
    assert shown in told and "hunter2" not in told and "ss@host" not in told.replace("(hidden)@", "")


@pytest.mark.parametrize(
    "name", ["X_AUTH_TOKEN", "accessKey", "MA_AUTHORIZATION", "JUPYTER_COOKIE", "OBS_SK", "MA_AUTH"]
)
def test_names_of_secrets(name):
    assert modelarts.public_environment({name: "hunter2"}) == {name: "(set, hidden)"}


def test_folders(fake_root, tmp_path):
    found = modelarts.folders({}, fake_root())
    assert found["persistent"].free and found["cache"].free and "lost" in found["persistent"].text
    assert modelarts.folders({}, tmp_path / "none")["cache"].free is None
    assert "OBS" in modelarts.folders(JOB, tmp_path)["persistent"].text
