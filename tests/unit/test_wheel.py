"""The wheel contains the licence, and a list of all that an installation brings."""

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    [file] = directory.glob("*.whl")
    return zipfile.ZipFile(file)


def held(wheel: zipfile.ZipFile, ending: str) -> str:
    [name] = [name for name in wheel.namelist() if name.endswith(ending)]
    return wheel.read(name).decode()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    return {normal(found[1]): found[2] for line in lines if (found := re.match(r"([\w.-]+)==([\w.]+)", line))}


def test_the_wheel_has_the_licence(wheel: zipfile.ZipFile) -> None:
    assert held(wheel, ".dist-info/licenses/LICENSE") == (ROOT / "LICENSE").read_text()
    assert "License-Expression: Apache-2.0" in held(wheel, ".dist-info/METADATA")


def test_the_wheel_lists_what_an_installation_pulls_in(wheel: zipfile.ZipFile) -> None:
    bom = json.loads(held(wheel, ".dist-info/sboms/sbom.cdx.json"))
    assert (bom["bomFormat"], bom["metadata"]["component"]["name"]) == ("CycloneDX", "consumerkit")
    listed = {normal(one["name"]): one for one in bom["components"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + [one for name, some in extras.items() if name != "all" for one in some]
    assert {normal(re.split(r"[\[><=]", one)[0]) for one in wanted} <= listed.keys()
    assert all(one.get("licenses") and one["version"] for one in listed.values())


def test_the_oldest_versions_are_those_that_the_project_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = pinned("requirements-oldest.txt")
    for one in project["dependencies"]:
        wanted = Requirement(one)
        assert oldest[normal(wanted.name)] in wanted.specifier, one
