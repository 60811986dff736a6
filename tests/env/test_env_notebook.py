"""01_env is executed, on this host and on fake ModelArts roots."""

import json
import os
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_env" / "01_env.ipynb"

pytestmark = pytest.mark.notebook


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Execute 01_env; returns (meta, all printed text, the output notebook)."""
    papermill = pytest.importorskip("papermill")
    pytest.importorskip("ipykernel")
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("PYTHONPATH", f"{NOTEBOOK.parents[2]}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("QWENLIB_HEADLESS", "1")

    def execute(**parameters):
        run = tmp_path / "run"
        parameters = {"output": str(run), "probe_imports": False, **parameters}
        done = papermill.execute_notebook(
            str(NOTEBOOK),
            str(tmp_path / "out.ipynb"),
            parameters,
            kernel_name="python3",
            progress_bar=False,
            cwd=str(tmp_path),
        )
        outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
        text = "".join(output.get("text", "") for output in outputs)
        meta = run / "01_env" / "meta.json"
        return json.loads(meta.read_text()), text, outputs

    return execute


def kinds(outputs):
    return [kind for output in outputs for kind in output.get("data", {})]


@pytest.mark.stack
def test_on_a_plain_host(execute):
    meta, text, outputs = execute()
    assert meta["metrics"]["fail"] == 0 and meta["metrics"]["ranks"] == 2 and meta["outputs"]["rank_table"] == ""
    assert "no Ascend: no rank table is needed, and nothing is simulated" in text and "[SKIP]" in text
    assert "image/png" not in kinds(outputs)
    assert json.loads(Path(meta["outputs"]["doctor"]).read_text())["place"] == "plain host"


def test_on_a_modelarts_notebook(execute, fake_root):
    root = fake_root(table="v1_guide_eight_cards")
    meta, text, outputs = execute(root=str(root), profile="lora_7b_910a", strict=False)
    assert meta["outputs"]["rank_table"] == str(root / "user/config/nbstart_hccl.json")
    assert meta["metrics"]["ranks"] == 8 and meta["config"]["place"] == "notebook"
    assert [item["DEVICE_ID"] for item in meta["config"]["environments"]] == list("01234567")
    assert "image/png" in kinds(outputs) and "text/html" in kinds(outputs)
    assert "8 x 910PremiumA" in text and "sha256" in text


def test_a_v0_table_in_a_training_job_is_converted(execute, fake_root, monkeypatch):
    root = fake_root(table="v0_two_nodes_out_of_order", notebook=False)
    (root / "user/config/nbstart_hccl.json").rename(root / "user/config/jobstart_hccl.json")
    (root / "usr/local/Ascend/driver/tools/hccn_tool").unlink()  # as in most containers
    monkeypatch.setenv("RANK_TABLE_FILE", "/user/config")
    monkeypatch.setenv("MA_VJ_NAME", "ma-job-1")
    monkeypatch.setenv("MA_CURRENT_HOST_IP", "10.19.1.79")
    meta, _text, _ = execute(root=str(root), profile="finetune_7b_910a", strict=False)
    table = json.loads(Path(meta["outputs"]["rank_table"]).read_text())
    assert table["version"] == "1.0" and table["server_list"][0]["server_id"] == "10.19.1.142"
    assert [item["RANK_ID"] for item in meta["config"]["environments"]] == [str(rank) for rank in range(8, 16)]
    assert meta["config"]["place"] == "training job" and "not checked" not in meta["config"]["layout"]


def test_a_fail_stops_the_notebook_with_all_fails_named(execute, fake_root, tmp_path):
    from papermill.exceptions import PapermillExecutionError

    root = fake_root("busy")
    with pytest.raises(PapermillExecutionError, match="the doctor found") as caught:
        execute(root=str(root), profile="lora_7b_910a")
    told = str(caught.value)
    assert "qwenlib failed: the doctor found" in told and "Traceback" not in told
    fails = [
        item["name"]
        for item in json.loads((tmp_path / "run/01_env/doctor.json").read_text())["findings"]
        if item["state"] == "FAIL"
    ]
    assert "occupied cards" in fails and all(f"{name}: " in told for name in fails)
    assert not (tmp_path / "run/01_env/meta.json").exists() and (tmp_path / "run/01_env/doctor.json").exists()


def test_the_wait_ends(execute, tmp_path):
    from papermill.exceptions import PapermillExecutionError

    table = tmp_path / "hccl.json"
    table.write_text('{"status": "initializing"}')
    with pytest.raises(PapermillExecutionError, match=r"not ready after 0.5 s"):
        execute(rank_table=str(table), profile="lora_7b_910a", strict=False, wait_seconds=0.5, root=str(tmp_path))
