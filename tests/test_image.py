"""The image, built from infra/Containerfile without a daemon: what it holds, and both pipelines run inside of it."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import rendered
import yaml
from conftest import REPOSITORY
from kfp.local import status, subprocess_task_handler

from maskocr_core.artifacts import LINEAGE, Artifact
from maskocr_pipelines import local

INFRA = REPOSITORY / "infra"
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
LOCKS = {path.name: path for path in (REPOSITORY / "requirements.lock", *sorted(INFRA.glob("*.lock")))}
BOTH_VARIANTS = ("requirements.lock", "mlflow-auth.lock", "sbom.lock")
PYTORCH = "https://download.pytorch.org/whl/cpu"


def locked(name: str) -> dict[str, str]:
    """Versions by package, both as they are written in one normal form."""
    pins = re.findall(r"^([\w.-]+)={2,3}([^\s;]+)", LOCKS[name].read_text(), re.MULTILINE)
    return {normal(package): version for package, version in pins}


def normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


# The locks


@pytest.mark.parametrize("name", sorted(set(LOCKS) - {"requirements.lock"}))
def test_a_lock_beside_the_main_one_agrees_with_it(name):
    main, beside = locked("requirements.lock"), locked(name)
    assert beside
    assert {package: beside[package].partition("+")[0] for package in beside.keys() & main.keys()} == {
        package: main[package] for package in beside.keys() & main.keys()
    }


def test_each_variant_names_its_own_build_of_the_torch_that_is_locked():
    torch = locked("requirements.lock")["torch"]
    assert f"\ntorch=={torch}+cpu\n" in LOCKS["cpu.lock"].read_text()
    assert f"\ntorch==={torch}\n" in LOCKS["cuda.lock"].read_text(), (
        "`==` would take the CPU build where one is offered"
    )
    assert set(locked("cpu.lock")) == {"torch"}
    assert locked("cuda.lock").keys() & locked("requirements.lock").keys() == {"torch"}


# The image


@dataclass(frozen=True)
class Container:
    """A container of the image. `work` is a volume that lies at the same path inside and outside."""

    buildah: tuple[str, ...]
    name: str
    commit: str
    work: Path

    def run(self, *command: str, user: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it as a node would: as the user and with the environment that the image names."""
        entering = ["run", "--isolation", "chroot", "--volume", f"{self.work}:{self.work}"]
        entering += [f"--env={name}={value}" for name, value in environment.items()]
        entering += ["--user", user] if user else []
        return subprocess.run(
            [*self.buildah, *entering, self.name, "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def says(self, *command: str, **environment: str) -> str:
        done = self.run(*command, **environment)
        assert done.returncode == 0, done.stdout
        return done.stdout.strip()

    def configuration(self) -> dict:
        return json.loads(do(*self.buildah, "inspect", self.name))["OCIv1"]["config"]


def do(*command: str) -> str:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout.strip()


def wheels(folder: Path) -> Path:
    """What the image installs, fetched here: pip has most of it in its cache, and the build needs no network."""
    fetch = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}"]
    # Only this build of torch lies in PyTorch's index. Where pip was told of another place that has it, the index may be away.
    do(*fetch, "--retries=1", f"--extra-index-url={PYTORCH}", f"--requirement={LOCKS['cpu.lock']}")
    do(*fetch, f"--find-links={folder}", *(f"--requirement={LOCKS[name]}" for name in BOTH_VARIANTS))
    return folder


def debian(buildah: tuple[str, ...]) -> str:
    """An image of Debian with Python, which is what the base that the Containerfile names is."""
    container = do(*buildah, "from", "scratch")
    root = do(*buildah, "mount", container)
    packages = "--include=python3,python3-venv,python-is-python3"
    lean = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "man", "locale")]
    do("mmdebstrap", "--mode=root", "--variant=minbase", packages, *lean, "bookworm", root)
    do(*buildah, "umount", container)
    do(*buildah, "config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", container)
    do(*buildah, "commit", "--rm", container, "localhost/debian-python")
    return "localhost/debian-python"


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Iterator[Container]:
    """A container of the image as this checkout builds it for the CPU."""
    missing = [tool for tool in ("buildah", "mmdebstrap") if not shutil.which(tool)]
    if missing or os.geteuid():
        pytest.skip(f"an image is built by root with buildah and mmdebstrap; not here: {', '.join(missing) or 'root'}")
    root = tmp_path_factory.mktemp("image")
    buildah = ("buildah", "--root", str(root / "storage"), "--runroot", str(root / "running"))
    work = root / "work"
    work.mkdir()
    shutil.chown(work, 1000, 1000)
    try:
        base, found = debian(buildah), wheels(root / "wheels")
        build = ["bud", "--isolation", "chroot", "--layers=false", "-f", "infra/Containerfile"]
        build += ["--ignorefile", "infra/Containerfile.dockerignore", "--volume", f"{found}:/mnt:ro"]
        build += ["--build-arg", f"BASE={base}", "--build-arg", "PIP_FLAGS=--no-index --find-links=/mnt"]
        commit = do("git", "rev-parse", "HEAD")
        build += ["--build-arg", f"COMMIT={commit}"]
        do(*buildah, *build, "-t", f"localhost/maskocr-python:{VERSION}", ".")
        shutil.rmtree(found)
        yield Container(buildah, do(*buildah, "from", f"localhost/maskocr-python:{VERSION}"), commit, work)
    finally:
        do(*buildah, "rm", "--all")
        do(*buildah, "rmi", "--all", "--force")
        shutil.rmtree(root)


@pytest.mark.image
def test_the_image_says_which_version_and_commit_it_is(image):
    assert image.configuration()["Labels"]["org.opencontainers.image.version"] == VERSION
    assert image.says("python", "-c", "import importlib.metadata as m; print(m.version('maskocr'))") == VERSION
    assert image.says("printenv", "MASKOCR_COMMIT") == image.commit


@pytest.mark.image
def test_it_runs_as_a_user_without_rights_who_cannot_write_the_code(image):
    said = image.says("sh", "-c", "id -u; id -g; id -nG; echo $HOME; pwd").split()
    assert said == ["1000", "1000", "maskocr", "/home/maskocr", "/home/maskocr"]
    assert (
        image.says("find", "/opt/maskocr", "(", "-writable", "-o", "!", "-user", "root", ")", "!", "-type", "l") == ""
    )
    assert image.says("sh", "-c", "touch ~/mine /tmp/mine") == ""


@pytest.mark.image
def test_no_compiler_is_in_it_and_nothing_that_only_the_build_needed(image):
    tools = ("gcc", "cc", "g++", "c++", "clang", "make", "ld", "as", "git", "cyclonedx-py")
    look = f"for tool in {' '.join(tools)}; do command -v $tool || true; done"
    assert image.says("sh", "-c", look, user="0:0") == ""
    left = "-path */.cache/pip* -o -path /src* -o -path /opt/sbom/*"
    assert image.says("find", "/", "-xdev", *left.split(), user="0:0") == ""


@pytest.mark.image
def test_what_is_installed_fits_together_and_is_the_locks_of_the_cpu_variant(image):
    assert image.says("pip", "check") == "No broken requirements found."
    asked = locked("requirements.lock") | locked("mlflow-auth.lock") | locked("cpu.lock") | {"maskocr": VERSION}
    # pip is the base's own.
    assert {package: version for package, version in installed(image).items() if package != "pip"} == asked


def installed(image: Container) -> dict[str, str]:
    listed = "import importlib.metadata as m, json; print(json.dumps([(d.name, d.version) for d in m.distributions()]))"
    return {normal(package): version for package, version in json.loads(image.says("python", "-c", listed))}


@pytest.mark.image
def test_the_bill_of_materials_lists_what_is_installed_and_nothing_else(image):
    """That it keeps the schema of CycloneDX is checked by the program that writes it, in the build."""
    bill = json.loads(image.says("cat", "/opt/maskocr/sbom.cdx.json"))
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "maskocr")
    components = [*bill["components"], bill["metadata"]["component"]]
    assert {normal(each["name"]): each["version"] for each in components} == installed(image)
    assert len(components) == len(installed(image))
    assert all(each["purl"].startswith("pkg:pypi/") for each in bill["components"])
    assert sum("licenses" in each for each in components) > 0.9 * len(components)


# The pipelines inside of it


def run_inside(image: Container, name: str, settings: dict[str, str], **arguments: str) -> list[list[str]]:
    """Run a pipeline with its tasks in the image; their commands.

    kfp.local does what Kubeflow Pipelines does between tasks: it hands each one what its executor asks for. It has no
    runner for containers without a daemon; this one gives the command to buildah, and replaces nothing in it.
    """
    commands = []

    class InTheImage(subprocess_task_handler.SubprocessTaskHandler):
        def run(self) -> status.Status:
            done = image.run(*self.full_command, MASKOCR_RUN=name, **settings)
            print(done.stdout)
            commands.append(self.full_command)
            return status.Status.SUCCESS if done.returncode == 0 else status.Status.FAILURE

    knobs = {"recipe": "smoke", "overrides": ["retrain.settle_minutes=0", "retrain.min_lines=100"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess_task_handler, "SubprocessTaskHandler", InTheImage)
        local.run(REPOSITORY / "pipelines" / f"{name}.yaml", arguments | knobs, image.work / "pipelines")
    return commands


@pytest.fixture(scope="module")
def ran(image, raw) -> dict[str, list[list[str]]]:
    """Commands by pipeline: the first registers a model, which is made the champion, and the second goes on from it."""
    work = image.work
    shutil.copytree(raw, work / "raw")
    arrived = rendered.rows(documents=7, lines=16, split="unlabeled", font="serif", seed=50, source="arrived")
    rendered.parquet(work / "new/arrived.parquet", arrived)
    do("chown", "--recursive", "1000:1000", str(work))
    settings = {"MLFLOW_TRACKING_URI": f"sqlite:///{work / 'mlflow.db'}", "MASKOCR_WORK": str(work / "stages")}
    settings["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
    target, transfer = str(work / "raw/target"), str(work / "raw/transfer")
    first = run_inside(image, "pretrain_finetune", settings, data_uri=target, transfer_uri=transfer)
    promote = ("maskocr", "promote", "--version=1", "--reason=the first one", "--recipe=smoke")
    image.says(*promote, MASKOCR_WHO="tests", **settings)
    places = {"data_uri": str(work / "new"), "claims_uri": str(work / "claims"), "labelled_uri": target}
    return {"pretrain_finetune": first, "retrain": run_inside(image, "retrain", settings, **places)}


@pytest.mark.image
@pytest.mark.parametrize("name", ["pretrain_finetune", "retrain"])
def test_every_executor_of_a_pipeline_runs_in_the_image_by_its_exact_command(ran, name):
    spec = next(yaml.safe_load_all((REPOSITORY / "pipelines" / f"{name}.yaml").read_text()))
    executors = [executor["container"] for executor in spec["deploymentSpec"]["executors"].values()]
    by_function = {command[-1]: command for command in ran[name]}
    assert len(by_function) == len(ran[name]) == len(executors)
    for executor in executors:
        command = by_function[executor["args"][-1]]
        told = command[command.index("--executor_input") + 1]
        assert command == [told if part == "{{$}}" else part for part in executor["command"] + executor["args"]]
        assert set(json.loads(told)) == {"inputs", "outputs"}


@pytest.mark.image
def test_a_model_is_registered_and_every_artifact_says_the_images_commit(ran, image):
    registered = [Artifact(path) for path in image.work.glob("pipelines/*/*/registration_out")]
    assert sorted(each.read_json("registration.json")["version"] for each in registered) == ["1", "2"]
    lineages = [json.loads(path.read_text()) for path in image.work.glob(f"pipelines/*/*/*/{LINEAGE}")]
    assert {lineage["commit"] for lineage in lineages} == {image.commit}
