"""The workflows hang together: jobs that they need are there, and what they run exists in this repository."""

from __future__ import annotations

import ast
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import upstream

from first_cpp.cli.main import setup_arg_parser

yaml = pytest.importorskip("yaml")
tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
ROOT = pathlib.Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs(path: pathlib.Path) -> dict:
    return yaml.safe_load(path.read_text())["jobs"]


def steps(path: pathlib.Path) -> list[dict]:
    return [step for job in jobs(path).values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_whole(path):
    found = jobs(path)
    for job in found.values():
        needed = job.get("needs", [])
        assert set([needed] if isinstance(needed, str) else needed) <= set(found)
    for step in steps(path):
        assert ("uses" in step) != ("run" in step)
        for file in re.findall(r"\b(?:tools|tests|benchmarks)/[\w/]+\.\w+", step.get("run", "")):
            assert (ROOT / file).is_file()


@pytest.fixture(scope="module")
def check_jsonschema(tmp_path_factory) -> dict[str, str]:
    """An environment with check-jsonschema, which brings the public schemas of GitHub's files."""
    folder = tmp_path_factory.mktemp("packages")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--target", str(folder)]
    if subprocess.run([*pip, "check-jsonschema"], check=False, capture_output=True).returncode:
        pytest.skip("the package index cannot be reached")
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", "workflows/*.yml"),
        ("github-issue-forms", "ISSUE_TEMPLATE/[!c]*.yml"),
        ("github-issue-config", "ISSUE_TEMPLATE/config.yml"),
    ],
)
def test_github_can_read_its_files(check_jsonschema, schema, files):
    paths = sorted((ROOT / ".github").glob(files))
    assert paths
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, paths)]
    done = subprocess.run(command, env=check_jsonschema, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_artifacts_are_made_before_they_are_fetched():
    path = ROOT / ".github" / "workflows" / "wheels.yml"
    found = jobs(path)
    made = {step["with"]["name"] for step in steps(path) if "upload-artifact" in step.get("uses", "")}
    asked = {step["with"].get("name") for step in steps(path) if "download-artifact" in step.get("uses", "")} - {None}
    assert asked <= made
    assert set(found["empty"]["strategy"]["matrix"]["os"]) <= set(found["wheels"]["strategy"]["matrix"]["os"])


def test_the_commands_of_the_empty_environment_parse():
    path = ROOT / ".github" / "workflows" / "wheels.yml"
    text = "\n".join(step.get("run", "") for step in jobs(path)["empty"]["steps"])
    commands = re.findall(r"empty/bin/first-cpp ([^>\n]+)", text)
    assert len(commands) == 4
    for command in commands:
        setup_arg_parser().parse_args(shlex.split(command.split(" & ")[0]))


def imported(path: pathlib.Path) -> set[str]:
    """The modules that a file imports as it is loaded."""
    tree = ast.parse(path.read_text())
    found = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in found}


def test_the_environment_of_a_wheel_has_what_its_tests_import():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["cibuildwheel"]
    installed = [*project["project"]["dependencies"], *wheel["test-requires"]]
    names = {re.match(r"[\w-]+", one)[0].replace("-", "_") for one in installed}
    paths = [ROOT / name for command in wheel["test-command"] for name in re.findall(r"\{project\}/([\w/.]+)", command)]
    files = [
        ROOT / "tests" / "conftest.py",
        *(file for path in paths for file in ([path] if path.is_file() else path.glob("*.py"))),
    ]
    assert len(files) > 10
    support = {file.stem: file for file in (ROOT / "tests" / "support").glob("*.py")}
    seen = set()
    while files:
        file = files.pop()
        seen.add(file)
        modules = imported(file)
        files += [support[name] for name in modules & set(support) if support[name] not in seen]
        assert modules <= set(sys.stdlib_module_names) | {"first_cpp", "llama_cpp", *support, *names}, file
        assert not modules & {"resource", "fcntl", "pwd"}, f"{file}: Windows lacks it"
    written = {re.sub(r"\s", "", one) for one in upstream.NEEDED}
    assert set(wheel["test-requires"]) <= written


def test_a_release_is_what_the_version_and_the_changelog_say():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert re.search(rf"^## {re.escape(version)} \(", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
