"""Policies of the repository, as tests: who may import whom, what stays light, what must agree."""

import ast
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from maskocr_core import stages

CORE = REPOSITORY / "maskocr_core"
ROOMS = ("stages", "data", "model", "training", "judging", "services")
# Arrows in one direction; `training` asks `judging` for the CER that validation needs.
MAY_IMPORT = {
    "model": set(),
    "judging": set(),
    "services": set(),
    "data": {"services"},
    "training": {"model", "data", "judging", "services"},
    "stages": {"data", "training", "model", "judging", "services"},
}
VENDORS = {
    "mlflow": {f"maskocr_core/services/{name}.py" for name in ("tracking", "registered", "compared")},
    "great_expectations": {"maskocr_core/services/expectations.py"},
    "ray": {f"maskocr_core/services/{name}.py" for name in ("cluster", "post", "workers", "jobs")},
    "boto3": {"maskocr_core/services/s3.py"},
    "botocore": {"maskocr_core/services/s3.py"},
}
SOURCES = sorted(
    path for folder in ("maskocr_core", "components", "pipelines") for path in (REPOSITORY / folder).rglob("*.py")
)


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_that_its_arrows_point_to(room):
    for path in (CORE / room).rglob("*.py"):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "maskocr_core" and len(parts) > 1 and parts[1] in ROOMS and parts[1] != room:
                assert parts[1] in MAY_IMPORT[room], f"{path.relative_to(REPOSITORY)} imports {name}"


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendor_has_one_importing_module(vendor):
    importers = {
        str(path.relative_to(REPOSITORY))
        for path in SOURCES
        if any(name.split(".")[0] == vendor for name in imports(path))
    }
    assert importers == VENDORS[vendor]


def test_only_components_and_pipelines_import_kfp():
    importers = {
        path.relative_to(REPOSITORY).parts[0]
        for path in SOURCES
        if any(name.split(".")[0] in ("kfp", "kfp_server_api") for name in imports(path))
    }
    assert importers == {"components", "pipelines"}


def test_pipelines_do_not_know_the_core():
    for path in (REPOSITORY / "pipelines").glob("*.py"):
        assert not any(name.startswith("maskocr_core") for name in imports(path)), path


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nsys.argv = ['maskocr', '--help']\n"
        "from maskocr_core import cli\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'kfp', 'ray', 'mlflow', 'pandas', 'pyarrow', 'sklearn'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip().endswith("[]"), shown.splitlines()[-1]


@pytest.mark.parametrize("name", (*stages.NAMES, *stages.BESIDE))
def test_a_component_mirrors_its_stage_and_holds_no_logic(name):
    path = REPOSITORY / "components" / f"{name}.py"
    tree = ast.parse(path.read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
    assert function.name == name
    body = [node for node in function.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    assert len(body) <= 4
    assert not any(isinstance(node, ast.If) for node in ast.walk(function))
    component = [argument.arg for argument in function.args.args]
    stage = list(inspect.signature(stages.get(name)).parameters)
    assert stage[0] == "config"
    handed = {*stage[1:]} | ({"data_version"} if "lines" in stage else set())  # `@stage` compares it with the lines
    shown = {"report"} if name == "evaluate" else set()  # in Kubeflow's own UI
    assert set(component) == {"recipe", "overrides", "metrics", *shown, *handed}
    call = next(
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and any(word.arg in stage for word in node.keywords)
    )
    assert {word.arg for word in call.keywords} == handed


@pytest.mark.parametrize("pipeline", ["pretrain_finetune", "retrain"])
def test_every_task_that_reads_lines_has_the_data_version_of_ingest_among_its_inputs(pipeline):
    compiled = next(yaml.safe_load_all((REPOSITORY / "pipelines" / f"{pipeline}.yaml").read_text()))
    below = [part["dag"] for part in compiled["components"].values() if "dag" in part]
    tasks = {name: task for dag in (compiled["root"]["dag"], *below) for name, task in dag["tasks"].items()}
    reading = {name for name, task in tasks.items() if "lines" in task["inputs"].get("artifacts", {})}
    assert reading == set(stages.NAMES) - {"ingest"} | ({"decide"} if pipeline == "retrain" else set())
    for name in reading:
        said = tasks[name]["inputs"]["parameters"]["data_version"]
        within = {"componentInputParameter": "pipelinechannel--ingest-data_version"}  # handed to what a condition holds
        made = {"taskOutputParameter": {"producerTask": "ingest", "outputParameterKey": "data_version"}}
        assert said in (made, within)


@pytest.mark.parametrize("name", (*stages.NAMES, *stages.BESIDE))
def test_a_stage_has_config_then_keyword_only_paths_each_described(name):
    stage = stages.get(name)
    parameters = list(inspect.signature(stage).parameters.values())
    assert parameters[0].name == "config"
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters[1:])
    for parameter in parameters[1:]:
        assert re.search(rf"^{parameter.name}: \S", inspect.getdoc(stage), re.MULTILINE), (
            f"{name} does not describe {parameter.name}"
        )


@pytest.mark.parametrize("name", (*stages.NAMES, *stages.BESIDE))
def test_the_command_line_has_a_flag_for_every_parameter_of_a_stage(name):
    import typer.main

    from maskocr_core import cli

    command = typer.main.get_command(cli.app).commands[name]
    flags = {option for parameter in command.params for option in parameter.opts}
    assert flags >= {cli.flag(parameter) for parameter in list(inspect.signature(stages.get(name)).parameters)[1:]} | {
        "--recipe",
        "--set",
    }


def test_dvc_runs_the_data_stages_with_the_flags_and_paths_of_their_signatures():
    defined = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    assert list(defined) == ["ingest", "validate", "fit", "quantize"]
    for name, entry in defined.items():
        parameters = list(inspect.signature(stages.get(name)).parameters)[1:]
        words = shlex.split(entry["cmd"])
        assert words[:2] == ["maskocr", name]
        given = {
            word.removeprefix("--").replace("-", "_"): value
            for word, value in zip(words, words[1:])
            if word.startswith("--") and word != "--recipe"
        }
        assert set(given) == set(parameters)
        assert [given[parameter] for parameter in parameters if parameter.endswith("_out")] == entry["outs"]
        assert sorted(given[p] for p in parameters if not p.endswith(("_out", "_uri", "_uris"))) == sorted(
            entry.get("deps", [])
        )
        assert f"code.{name}" in entry["params"]


def test_the_compiled_pipelines_are_current(tmp_path):
    from maskocr_pipelines import __main__ as compilation

    for path in compilation.compile_all(tmp_path):
        committed = REPOSITORY / "pipelines" / path.name
        assert committed.read_text() == path.read_text(), (
            f"{committed.name} is stale: run `make pipelines` and commit it"
        )


def test_the_image_tag_is_the_version():
    from maskocr_components import IMAGE

    version = re.search(r'^version = "(.+)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert IMAGE.endswith(f":{version}")
    assert f"image: {IMAGE}" in (REPOSITORY / "pipelines" / "pretrain_finetune.yaml").read_text()
    assert version in (REPOSITORY / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("pipeline", ["pretrain_finetune", "retrain"])
def test_every_pipeline_parameter_is_described(pipeline):
    from maskocr_pipelines import client

    for parameter in client.parameters(REPOSITORY / "pipelines" / f"{pipeline}.yaml").values():
        assert len(parameter.description) > 20, parameter.name


def test_the_lock_pins_everything_that_pyproject_asks_for_and_names_no_local_build():
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    asked = [
        Requirement(text)
        for text in project["dependencies"]
        + [text for extra in project["optional-dependencies"].values() for text in extra]
    ]
    lines = [
        line
        for line in (REPOSITORY / "requirements.lock").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w.\-]+==[\w.\-!]+", line) for line in lines), [line for line in lines if "+" in line]
    locked = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    for requirement in asked:
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), str(requirement)


def test_no_module_has_a_name_that_says_nothing():
    assert not {path.stem for path in SOURCES} & {"utils", "helpers", "common", "misc", "manager"}


def test_nothing_installs_a_generic_top_level_package():
    import tomllib

    packages = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {name.split(".")[0] for name in packages} == {"maskocr_core", "maskocr_components", "maskocr_pipelines"}
    on_disk = {".".join(path.parent.relative_to(REPOSITORY).parts) for path in CORE.rglob("__init__.py")}
    assert on_disk == {name for name in packages if name.startswith("maskocr_core")}


def test_the_commands_of_the_readme_parse():
    import typer.main

    from maskocr_core import cli

    commands = typer.main.get_command(cli.app).commands
    targets = set(re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    readme = (REPOSITORY / "README.md").read_text()
    seen = set()
    for block in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"\w+=.*|export", words[0]):
                words.pop(0)
            if not words:
                continue
            program = Path(words[0]).name
            seen.add(program)
            if program == "make":
                assert words[1] in targets, line
            elif program == "maskocr":
                command = commands[words[1]]
                known = {
                    option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
                }
                assert {word.split("=")[0] for word in words[2:] if word.startswith("--")} <= known, line
    assert {"make", "maskocr", "kfp"} <= seen


def test_the_generated_tables_of_readme_and_docs_are_current():
    from benchmarks import readme

    for page in readme.PAGES:
        assert readme.render(page.read_text()) == page.read_text(), (
            f"run `python benchmarks/readme.py` and commit {page.relative_to(REPOSITORY)}"
        )


def test_importing_the_modules_writes_no_file_and_sets_nothing(tmp_path):
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for path in CORE.rglob("*.py")
    ]
    modules.remove("maskocr_core.served_model")  # MLflow runs it, that is its whole purpose
    code = (
        "import importlib, os\nbefore = dict(os.environ)\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print([name for name, value in os.environ.items() if before.get(name) != value and name.split('_')[0] in ('MASKOCR', 'MLFLOW', 'RAY', 'GX', 'DVC')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"
    assert not list(tmp_path.iterdir())
