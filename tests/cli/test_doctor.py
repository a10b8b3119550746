"""`plug-jax doctor`: what it reports."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from plug_jax.cli import doctor
from plug_jax.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for installed packages, by name and version."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(place: Path, name: str, version: str, *requires: str, extras: str = "") -> None:
    directory = place / f"{name}-{version}.dist-info"
    directory.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Provides-Extra: {extra}" for extra in extras.split()]
    lines += [f"Requires-Dist: {one}" for one in requires]
    (directory / "METADATA").write_text("\n".join(lines) + "\n")


def test_what_is_lacking(installed: Path) -> None:
    install(
        installed,
        "thing",
        "1.0",
        "part>=2",
        "nowhere-to-be-found>=1; python_version < '3'",
        "nowhere-to-be-found>=1; extra == 'more'",
        "part[fast]; extra == 'fast'",
        extras="more fast",
    )
    install(installed, "part", "1.9", "engine-that-is-none; extra == 'fast'", extras="fast")
    assert doctor.lacking("thing") == ["part is 1.9, not >=2"]
    assert doctor.lacking("thing", "more") == ["nowhere-to-be-found is missing"]
    assert doctor.lacking("thing", "fast") == ["engine-that-is-none is missing"]


def test_all_is_well_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    states = {check["name"]: check["state"] for check in said["checks"]}
    assert set(states.values()) <= {"ok", "absent"}
    assert states["devices"] == states["text"] == states["packages"] == "ok"
    texts = {check["name"]: check["text"] for check in said["checks"]}
    assert texts["devices"].startswith("8 cpu (cpu)")


def test_what_is_needed_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> str:
        raise ImportError("libsomething.so.1: cannot\n  open")

    monkeypatch.setattr(doctor, "_text", lambda import_tensorflow: broken())
    monkeypatch.setattr(doctor, "_extra", lambda name: broken())
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "FAILED  text           ImportError: libsomething.so.1: cannot open\n" in said
    assert "absent  extra serve" in said


def test_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].keys() - {"dev", "docs", "parity"}
    assert extras == doctor.EXTRAS.keys()
    page = (ROOT / "docs" / "start" / "install.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in extras)
