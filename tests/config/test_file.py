import re

import pytest

from manyskills.config import FixedConfig, FrozenConfig, LoraConfig, TrainConfig
from manyskills.config.file import config_from_dict, config_schema, dump_config, load_config, starter_config
from manyskills.config.starter import starter_tasks
from manyskills.data.options import refuse_useless_options
from manyskills.errors import UserError


@pytest.fixture
def write(tmp_path):
    def make(text: str):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return make


def problems(path, *overrides) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    assert caught.value.hint
    return caught.value.message


def test_short_forms_and_scientific_numbers(write):
    config = load_config(write("tasks: [code_search, flaky_tests]\nmethod: frozen\nlearning_rate: 1e-4\n"))
    assert config.method == FrozenConfig()
    assert list(config.tasks) == ["code_search", "flaky_tests"]
    assert config.learning_rate == 1e-4


def test_a_section_without_a_name_means_the_default_choice(write):
    assert load_config(write("tasks: [code_search]\nmethod: {r: 4}\n")).method == LoraConfig(r=4)


def test_anchors_and_merge_keys(write):
    text = (
        "tasks:\n  code_search: &same {max_length: 64, limit: 5}\n  flaky_tests:\n    <<: *same\n    max_length: 32\n"
    )
    tasks = load_config(write(text)).tasks
    assert (tasks["flaky_tests"].max_length, tasks["flaky_tests"].limit.test) == (32, 5)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("learning_rate=2e-5", "learning_rate", 2e-5),
        ("method.r=8", "method.r", 8),
        ("method=full", "method.name", "full"),
        ("method={name: lora, r: 2}", "method.r", 2),
        ("tasks.code_search.limit=500", "tasks.code_search.limit.valid", 500),
        ("tasks.code_search.columns.code=func", "tasks.code_search.columns", {"code": "func"}),
        ("early_stopping=false", "early_stopping", None),
        ("early_stopping.patience=2", "early_stopping.patience", 2),
        ("report_to=[tensorboard]", "report_to", ["tensorboard"]),
        ("output_dir=runs/a=b", "output_dir", "runs/a=b"),
        ("max_steps=null", "max_steps", None),
    ],
)
def test_overrides(write, override, path, value):
    found = load_config(write("tasks: [code_search]\nmethod: lora\nmax_steps: 3\n"), [override])
    for part in path.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value


def test_overrides_reach_into_short_forms_and_into_each_other(write):
    path = write("tasks: {code_search: {limit: 300}, flaky_tests: }\nmethod: lora\n")
    config = load_config(
        path, ["tasks.code_search.limit.train=7", "tasks.flaky_tests.limit=9", "method.r=4", "method.r=5"]
    )
    limit = config.tasks["code_search"].limit
    assert (limit.train, limit.valid, limit.test) == (7, 300, 300)
    assert config.tasks["flaky_tests"].limit.train == 9
    assert config.method == LoraConfig(r=5)


def test_a_list_of_tasks_chooses_among_those_of_the_file(write):
    path = write("tasks: {code_search: {limit: 300}, flaky_tests: {max_length: 64}, defect_detection: }\n")
    config = load_config(path, ["tasks=[flaky_tests]", "tasks.flaky_tests.limit=9"])
    assert list(config.tasks) == ["flaky_tests"]
    assert config.tasks["flaky_tests"].max_length == 64
    assert config.tasks["flaky_tests"].limit.train == 9
    other = load_config(path, ["tasks=[clone_detection, code_search]"])
    assert list(other.tasks) == ["clone_detection", "code_search"]
    assert other.tasks["code_search"].limit.test == 300
    assert "tasks.flaky: unknown task" in problems(path, "tasks=[flaky]")


def test_another_choice_drops_what_the_file_said_of_the_former(write):
    path = write("tasks: [code_search]\nmethod: {name: lora, r: 8}\n")
    assert load_config(path, ["method.name=frozen"]).method == FrozenConfig()
    assert load_config(path, ["method=frozen"]).method == FrozenConfig()
    assert "override 'method.r=4': method.r: unknown key" in problems(path, "method.r=4", "method.name=frozen")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_lenght: 3", "run.yaml:2: max_lenght: unknown key: did you mean 'max_length'?"),
        ("method: {name: lora, rank: 8}", "run.yaml:2: method.rank: unknown key: did you mean 'r'?"),
        ("method: lroa", "run.yaml:2: method.name: unknown name 'lroa': did you mean 'lora'?"),
        ("method:\n  name: qlroa\n", "run.yaml:3: method.name: unknown name 'qlroa': did you mean 'qlora'?"),
        ("method: [lora]", "run.yaml:2: method: wanted"),
        ("backbone: {nam: x}", "run.yaml:2: backbone.nam: unknown key: did you mean 'name'?"),
        ("learning_rate: fast", "run.yaml:2: learning_rate: wanted a valid number, found 'fast'"),
        ("learning_rate: -1", "run.yaml:2: learning_rate: wanted greater than 0, found -1"),
        ("batch_size: 1.5", "run.yaml:2: batch_size: wanted a valid integer"),
        ("step_memory: cach", "run.yaml:2: step_memory: wanted 'single_pass' or 'cached', found 'cach'"),
        ("balancing: fixed", "run.yaml:2: balancing.weights: this key is missing"),
        (
            "balancing: {name: fixed, weights: {code_serch: 1}}",
            "run.yaml:2: balancing.weights.code_serch: this run has",
        ),
        ("push_to_hub: true", "push_to_hub needs hub_model_id"),
        ("seed: 1\nseed: 2", "run.yaml:3: seed: written twice (first in line 2)"),
        ("bf16: maybe", "run.yaml:2: bf16: wanted a valid boolean or 'auto', found 'maybe'"),
        ("baselines: [floor, celing]", "run.yaml:2: baselines.1: wanted"),
        ("sampling: {name: alternating, cap: 3}", "run.yaml:2: sampling: cap: shares are equal without a temperature"),
        ("sampling: alternating\nbalancing: dwa", "an alternating step holds one task, so dwa has nothing to balance"),
        ("distillation: {teachers: {flaky_tests: x}}", "distillation.teachers: flaky_tests is no task of this run"),
        ("distillation: {weight: 0.3}", "run.yaml:2: distillation.teachers: this key is missing"),
    ],
)
def test_each_mistake_has_its_place(write, text, message):
    assert message in problems(write(f"tasks: [code_search]\n{text}\n"))


def test_unknown_task_and_unknown_key_of_a_task(write):
    text = "tasks:\n  code_serch:\n  flaky_tests:\n    read: joined\n    limits: 3\n    limit: {trian: 4}\n"
    found = problems(write(text))
    assert "run.yaml:2: tasks.code_serch: unknown task: did you mean 'code_search'?" in found
    assert "run.yaml:4: tasks.flaky_tests.read: wanted 'separate' or 'joint', found 'joined'" in found
    assert "run.yaml:5: tasks.flaky_tests.limits: unknown key: did you mean 'limit'?" in found
    assert "run.yaml:6: tasks.flaky_tests.limit.trian: unknown key: did you mean 'train'?" in found


def test_all_mistakes_at_once_in_the_order_of_the_file(write):
    found = problems(write("tasks: [code_serch]\nseed: -1\nfoo: 1\nmax_length: 0\n"), "method.rank=2", "nonsense")
    places = [line.split(": ")[0].split("/")[-1].strip() for line in found.splitlines()[1:]]
    assert places[:4] == ["run.yaml:1", "run.yaml:2", "run.yaml:3", "run.yaml:4"]
    assert "override 'method.rank=2': method.rank: unknown key: did you mean 'r'?" in found
    assert "override 'nonsense': wanted key=value" in found
    assert found.startswith("6 problems")


def test_overrides_that_do_not_fit(write):
    path = write("tasks: [code_search]\n")
    assert "override 'seed.x=3': seed is 4, which has no keys" in problems(path, "seed=4", "seed.x=3")
    assert "override 'method={': " in problems(path, "method={")
    assert "override 'tasks.x.limit=3': tasks.x: unknown task" in problems(path, "tasks.x.limit=3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [code_search\nseed: 1\n", "run.yaml:2: broken YAML"),
        (
            "tasks: !!python/object/apply:os.system [x]\n",
            "run.yaml:1: broken YAML: the tag tag:yaml.org,2002:python/object",
        ),
        ("seed: !!python/name:os.system\n", "run.yaml:1: broken YAML: could not determine a constructor"),
        ("- a\n", "wanted keys and values, found list"),
        ("", "tasks: this key is missing"),
        ("a: &x [*x]\n", "an alias that holds itself"),
        ("tasks: {? [a] : b}\n", "run.yaml:1: a key must be a name"),
    ],
)
def test_files_that_are_no_configuration(write, text, message):
    assert message in problems(write(text))


def test_files_that_cannot_be_read(tmp_path):
    assert "there is no configuration" in problems(tmp_path / "none.yaml")
    assert "found the folder" in problems(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"seed: 1\n# caf\xe9\n")
    assert "latin.yaml:2: wanted UTF-8, found byte 0xe9 at byte offset 13" in problems(tmp_path / "latin.yaml")


def test_dumped_configurations_come_back(write):
    values = {
        "tasks": {"code_search": {"limit": {"train": 5}, "columns": {"code": "func"}}, "flaky_tests": None},
        "method": {"name": "lora", "r": 4},
        "balancing": FixedConfig(weights={"code_search": 1, "flaky_tests": 0.5}),
        "learning_rate": 1e-5,
        "report_to": "wandb",
    }
    config = TrainConfig.model_validate(values)
    assert load_config(write(dump_config(config))) == config


def test_a_dictionary_is_checked_like_a_file():
    given = {"tasks": ["code_search"], "method": "lora"}
    assert config_from_dict(given).method == LoraConfig()
    assert given["tasks"] == ["code_search"]
    with pytest.raises(UserError, match="configuration: foo: unknown key"):
        config_from_dict({"tasks": ["code_search"], "foo": 1})


def test_the_starter_is_accepted_and_every_comment_is_a_key(write):
    text = starter_config(["code_search", "clone_detection"], "my data", "runs/x: 1")
    config = load_config(write(text))
    assert (list(config.tasks), config.data_dir, config.output_dir) == (
        ["code_search", "clone_detection"],
        "my data",
        "runs/x: 1",
    )
    uncommented = re.sub(r"(?m)^#(?=\w|  )", "", text)
    assert load_config(write(uncommented)) == config
    assert all(f"\n{name}:" in uncommented for name in TrainConfig.model_fields)
    with pytest.raises(UserError, match="unknown task 'x'"):
        starter_config(["x"], "d", "o")


@pytest.mark.parametrize("names", [["code_translation"], ["code_translation", "flaky_tests"], starter_tasks()])
def test_the_starter_explains_the_keys_of_each_kind_of_task(write, names):
    text = starter_config(names, "d", "o")
    config = load_config(write(text))
    assert list(config.tasks) == names
    uncommented = re.sub(r"(?m)^#(?=\w|  )", "", text)
    assert load_config(write(uncommented)) == config
    refuse_useless_options(load_config(write(uncommented)))
    writes, heads = names != starter_tasks(), len(names) > 1
    for key in ("variants", "prompt", "max_new_tokens", "loss_on", "select_by", "num_beams"):
        assert uncommented.count(f"    {key}: ") == writes
    for key in ("head_hidden", "positive_weight", "answer"):
        assert uncommented.count(f"    {key}: ") == heads
    assert (config.backbone.name == "minilm") == (not writes), "what is written needs a backbone that can"
    assert ("also code_generation, code_summarization, code_translation" in text) == (not writes)


def test_the_schema_knows_short_forms():
    properties = config_schema()["properties"]
    names = properties["method"]["anyOf"][0]["enum"]
    assert {"frozen", "full", "lora", "serial_adapter", "mtl_lora"} <= set(names)
    assert properties["backbone"]["anyOf"][0] == {"type": "string"}
    assert properties["tasks"]["anyOf"][0]["type"] == "array"
