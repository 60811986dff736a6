"""Profiles: every shipped one loads, every mistake is told, nothing ever ends in a traceback."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Sequence

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenlib import profile as profiles
from qwenlib.errors import Refused


def refusal(name: Any, overrides: Sequence[str] = ()) -> str:
    with pytest.raises(Refused) as refused:
        profiles.load(name, overrides)
    return str(refused.value)


def written(folder: Path, tree: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", profiles.names())
def test_every_shipped_profile_loads_and_is_told_whole(name: str) -> None:
    profile = profiles.load(name)
    assert profile.name == name
    assert profiles.check(profile) == []
    tree = profiles.to_dict(profile)
    assert yaml.safe_load(yaml.safe_dump(tree)) == tree, "plain values only"


@pytest.mark.parametrize("name", profiles.names())
def test_a_profile_written_out_whole_loads_as_the_same(name: str, tmp_path: Path) -> None:
    profile = profiles.load(name)
    assert profiles.load(written(tmp_path, profiles.to_dict(profile))) == profile


def test_the_shipped_profiles_are_the_four_of_the_house() -> None:
    assert profiles.names() == ["finetune_7b_910a", "infer_7b_910a", "lora_7b_910a", "smoke"]
    assert profiles.load("lora_7b_910a").task("lora").parallel.ranks == 8
    assert profiles.load("finetune_7b_910a").task("finetune").parallel.ranks == 16
    assert profiles.load("smoke").tasks() == ["lora", "finetune"]
    assert profiles.load("infer_7b_910a").tasks() == []


def test_a_name_that_does_not_exist_is_told_with_the_nearest(tmp_path: Path) -> None:
    said = refusal("lora_7b_910b")
    assert "Did you mean lora_7b_910a?" in said and "smoke" in said
    assert str(tmp_path / "none.yaml") in refusal(tmp_path / "none.yaml")


def test_a_task_that_the_profile_lacks_is_refused() -> None:
    with pytest.raises(Refused, match=r"infer_7b_910a has no training task 'lora'; it has: none"):
        profiles.load("infer_7b_910a").task("lora")
    with pytest.raises(Refused, match=r"no training task 'predict'; it has: lora, finetune"):
        profiles.load("smoke").task("predict")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lora.epoch=3", "unknown key lora.epoch (did you mean lora.epochs?)"),
        ("lora.adapter.lora_rang=3", "unknown key lora.adapter.lora_rang (did you mean lora.adapter.lora_rank?)"),
        ("modle.num_layers=3", "unknown key modle (did you mean model?)"),
        ("zzz=3", "unknown key zzz."),
        ("epochs=3", "unknown key epochs (did you mean lora.epochs or finetune.epochs?)"),
        ("epoch=3", "unknown key epoch (did you mean lora.epochs?)"),
        ("LoRA.Epochs=3", "unknown key LoRA (did you mean lora?)"),
        ("lora_rank=3", "unknown key lora_rank (did you mean lora.adapter.lora_rank or finetune.adapter.lora_rank?)"),
        ("lora.lora_rank=3", "(did you mean lora.adapter.lora_rank"),
        ("=3", "an override must read key=value, found '=3'"),
        ("lora..epochs=3", "an override must read key=value, found 'lora..epochs=3'"),
        ("max_device_memory=31", "max_device_memory must be str, found 31"),
        ("max_device_memory=31Gbit", "max_device_memory must read like 31GB, found '31Gbit'"),
        ("lora.adapter.lora_dropout=1", "lora.adapter.lora_dropout must be 0 or more and below 1, found 1.0"),
        ("lora.warmup_ratio=5", "lora.warmup_ratio must be 0 to 1, found 5.0"),
        ("lora.weight_decay=-0.1", "lora.weight_decay must be 0 or more, found -0.1"),
        ("lora.lr_end=-1", "lora.lr_end must be 0 or more, found -1.0"),
        ("predict.top_p=1.5", "predict.top_p must be above 0 and at most 1, found 1.5"),
        ("predict.repetition_penalty=0", "predict.repetition_penalty must be above 0, found 0.0"),
        ("model.theta=0", "model.theta must be above 0, found 0.0"),
        ("lora.adapter.target_modules=w[q", "lora.adapter.target_modules 'w[q' is no regular expression: "),
        ("lora.adapter.target_modules=wq", "must match a matrix of a layer (wq, wk, wv, wo, w1, w2, w3), found 'wq'"),
        ("lora.epochs=three", "lora.epochs must be int, found 'three'"),
        ("seed=2020-13-45", "seed must be int, found '2020-13-45'"),  # YAML takes it for a date and gives up
        ("seed=0b_", "seed must be int, found '0b_'"),
        ("lora.epochs=3.5", "lora.epochs must be int, found 3.5"),
        ("lora.epochs=true", "lora.epochs must be int, found True"),
        ("lora.sink_mode=1", "lora.sink_mode must be bool, found 1"),
        ("lora.learning_rate=fast", "lora.learning_rate must be float, found 'fast'"),
        ("lora.learning_rate=", "lora.learning_rate must be float, found None"),
        ("data.labels=3", "data.labels must be str, found 3"),
        ("name=3", "name must be str, found 3"),
        ("model=3", "model must be a mapping, found 3"),
        ("lora.epochs", "an override must read key=value, found 'lora.epochs'"),
        ("data.labels=answers", "data.labels must be all or assistant, found 'answers'"),
        ("model.compute_dtype=half", "model.compute_dtype must be float16 or float32, found 'half'"),
        ("lora.epochs=0", "lora.epochs must be at least 1, found 0"),
        ("lora.parallel.model_parallel=0", "lora.parallel.model_parallel must be at least 1, found 0"),
        ("model.num_heads=0", "model.num_heads must be at least 1, found 0"),
        ("model.n_kv_heads=0", "model.n_kv_heads must be at least 1, found 0"),
        ("model.n_kv_heads=3", "model.num_heads 4 is not a multiple of n_kv_heads 3"),
        ("model.num_heads=3", "model.hidden_size 128 is not a multiple of num_heads 3"),
        ("data.seq_length=-1", "data.seq_length must be at least 1, found -1"),
        ("lora.learning_rate=0.0", "lora.learning_rate must be above 0, found 0.0"),
        ("lora.learning_rate=.nan", "lora.learning_rate must be a finite number, found nan"),
        ("lora.adapter=null", "lora.adapter is missing: without it every parameter would be trained"),
        ("finetune.adapter.lora_rank=4", "finetune.adapter must be left out"),
        ("lora.parallel.pipeline_stage=2", "lora.parallel.micro_batch_num must be at least pipeline_stage 2"),
        ("device_target=GPU", "device_target must be Ascend or CPU, found 'GPU'"),
    ],
)
def test_each_mistake_is_told_with_field_value_and_what_is_allowed(override: str, said: str) -> None:
    assert said in refusal("smoke", [override])


def test_all_problems_are_told_at_once() -> None:
    said = refusal("smoke", ["lora.epoch=3", "lora.batch_size=x", "data.labels=no one", "lora.sink_mode=true", "y"])
    for part in ("lora.epoch ", "lora.batch_size must be int", "data.labels must be", "lora.sink_mode must be", "'y'"):
        assert part in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lora.sink_mode=true", "lora.sink_mode must be false on the CPU"),
        ("finetune.parallel.model_parallel=2", "finetune.parallel: a CPU knows data_parallel only"),
        ("model.use_flash_attention=true", "model.use_flash_attention must be false on the CPU"),
    ],
)
def test_what_a_cpu_cannot_do_is_refused_there_and_only_there(override: str, said: str) -> None:
    assert said in refusal("smoke", [override])
    profiles.load("smoke", ["device_target=Ascend", override])


@pytest.mark.parametrize("name", ["lora_7b_910a", "finetune_7b_910a"])
def test_the_910a_profiles_are_refused_on_a_cpu(name: str) -> None:
    said = refusal(name, ["device_target=CPU"])
    assert "sink_mode" in said and "data_parallel only" in said and "use_flash_attention" in said


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("lora.epochs=3", 3),
        ("lora.learning_rate=8e-4", 8e-4),  # YAML reads this as a text
        ("lora.learning_rate=1", 1.0),
        ("lora.loss_scale_value= 0x400", 1024),
        ("lora.adapter.target_modules='.*wq|.*wv'", ".*wq|.*wv"),
        ("lora.adapter.target_modules=.*wq|.*wv", ".*wq|.*wv"),
        ("lora.adapter.train_lm_head=yes", True),
        ("model.n_kv_heads=2", 2),
        ("model.n_kv_heads=null", None),
        ("seed=0", 0),
        ("max_device_memory=30GB", "30GB"),
    ],
)
def test_overrides_take_the_type_of_the_field(override: str, value: Any) -> None:
    found: Any = profiles.load("smoke", [override])
    for part in override.partition("=")[0].split("."):
        found = getattr(found, part)
    assert (found, type(found)) == (value, type(value))


def test_the_last_override_wins_and_the_file_is_untouched() -> None:
    assert profiles.load("smoke", ["seed=1", "seed=2"]).seed == 2
    assert profiles.load("smoke").seed == 0


def test_an_override_may_open_a_part_that_the_file_lacks() -> None:
    profile = profiles.load("infer_7b_910a", ["lora.epochs=1", "lora.adapter.lora_rank=8"])
    assert profile.task("lora").adapter == profiles.Adapter(lora_rank=8)


def test_notebook_parameters_that_say_nothing_leave_the_profile_alone() -> None:
    given = profiles.overrides("lora", ["seed=1"], epochs=3, batch_size=0, learning_rate=0.0, name="", other=None)
    assert given == ["lora.epochs=3", "seed=1"]
    small = profiles.overrides("lora", [], learning_rate=1e-05)
    assert profiles.load("smoke", small).task("lora").learning_rate == 1e-05


def test_the_table_shows_every_setting_of_the_task() -> None:
    found = dict(profiles.rows(profiles.load("smoke"), "lora"))
    task = profiles.load("smoke").task("lora")
    assert found["profile"] == "smoke" and found["labels"] == "assistant" and found["seq_length"] == 96
    assert found["epochs"] == task.epochs and found["parallel.data_parallel"] == 2
    assert found["adapter.lora_rank"] == 16
    assert "adapter" not in dict(profiles.rows(profiles.load("smoke"), "finetune"))


def test_profiles_cannot_be_changed_in_passing() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        profiles.load("smoke").seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora: [", "is not YAML"),
        ("- lora", "must hold a mapping, found list"),
        ("0", "must hold a mapping, found int"),
        ("2020-13-45", "is not YAML"),
        ("1: 2", "unknown key 1"),
        ("model:\n  3: 4", "unknown key model.3"),
        ("seed: 0b_", "is not YAML"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_by_its_path(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    found = refusal(path)
    assert said in found and str(path) in found


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"name: \xff\xfe")
    assert "is not YAML" in refusal(path)


def test_an_empty_file_is_a_profile_of_defaults(tmp_path: Path) -> None:
    assert profiles.load(written(tmp_path, "# nothing yet\n")) == profiles.Profile("mine")


KEYS = st.sampled_from(
    ["", "seed", "name", "lora", "lora.epochs", "lora.parallel", "lora.parallel.model_parallel", "model", "model.x",
     "model.num_heads", "lora.adapter", "finetune.learning_rate", "predict.top_p", "data.labels", "device_target", "."]
)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3), max_leaves=6
)
FREE = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FREE
@given(st.lists(st.text(max_size=30) | st.tuples(KEYS, st.text(max_size=20)).map("=".join), max_size=4))
def test_no_override_ends_in_a_traceback(overrides: List[str]) -> None:
    try:
        profile = profiles.load("smoke", overrides)
    except Refused as error:
        assert len(str(error)) > 20
    else:
        assert profiles.check(profile) == []


@FREE
@given(st.lists(st.tuples(KEYS, VALUES), max_size=4))
def test_no_yaml_value_ends_in_a_traceback(tmp_path: Path, parts: List[Any]) -> None:
    tree: Dict[Any, Any] = {}
    for key, value in parts:
        *parents, last = key.split(".")
        place = tree
        for parent in parents:
            if not isinstance(place.get(parent), dict):
                place[parent] = {}
            place = place[parent]
        place[last] = value
    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    try:
        profile = profiles.load(path)
    except Refused as error:
        assert str(path) in str(error)
    else:
        assert profiles.check(profile) == []


@FREE
@given(st.text(alphabet="abc:-[]{}&*!|>'\"#%@`,? \n\t0x_b.é", max_size=40))
def test_no_text_in_a_profile_file_ends_in_a_traceback(tmp_path: Path, text: str) -> None:
    try:
        profiles.load(written(tmp_path, text))
    except Refused as error:
        assert "mine.yaml" in str(error)


@pytest.mark.parametrize("settings", ["lora.epochs=1", 3, [1], {"lora.epochs": 1}])
def test_settings_that_are_no_list_of_texts_are_refused(settings: object) -> None:
    with pytest.raises(Refused, match=r'settings must be a list of texts such as \["lora.epochs=3"\], found'):
        profiles.overrides("lora", settings)  # type: ignore[arg-type]
