"""The workflows hang together: jobs that they need are there, and what they run exists in this repository."""

from __future__ import annotations

import pathlib
import re
import shlex

import pytest

from first_cpp.cli.main import setup_arg_parser

yaml = pytest.importorskip("yaml")
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


def test_a_release_is_what_the_version_and_the_changelog_say():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert re.search(rf"^## {re.escape(version)} \(", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
