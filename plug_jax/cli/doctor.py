"""`plug-jax doctor`: reports what works on this machine, and what each extra would add."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import plug_jax
from plug_jax.cpu_cores import cores

SUMMARY = "Check what works on this machine: packages, devices, extras."
EXAMPLE = """examples:
  plug-jax doctor
  plug-jax doctor --json

Status 0: everything required works; an extra may be absent. Status 1: something required does
not. On a slice of several hosts start it on all of them, like a run.
"""

# The extras for users (dev, docs and parity are for work on plug-jax itself).
EXTRAS = {
    "cache": "plug-jax cache",
    "clean": "cleaning.Simplified, from traditional to simplified characters",
    "convert": "PyTorch's own files in plug-jax convert",
    "demo": "plug-jax demo and demo-finetune",
    "int8": "weights in 8 bits",
    "serve": "plug-jax serve",
    "tpu": "TPUs, and plug-jax plan",
}
_DISTRIBUTION = "plug-jax"
_NVIDIA = Path("/proc/driver/nvidia/version")


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    ok: bool
    needed: bool  # False: an extra
    text: str

    @property
    def state(self) -> str:
        """The state in one word."""
        return "ok" if self.ok else "FAILED" if self.needed else "absent"


class _Failed(Exception):
    """A failed check, with the reason."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax doctor`."""
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Run and report all checks; return 1 if a required one fails."""
    from plug_jax.cli.main import import_tensorflow

    findings = examine(import_tensorflow)
    if args.json:
        checks = [{**dataclasses.asdict(one), "state": one.state} for one in findings]
        print(json.dumps({**machine(), "checks": checks}, indent=2, ensure_ascii=False))
    else:
        print(", ".join(machine().values()))
        width = max(len(one.name) for one in findings)
        for one in findings:
            print(f"{one.state:6}  {one.name:{width}}  {one.text}")
    return 1 if any(one.needed and not one.ok for one in findings) else 0


def machine() -> dict[str, str]:
    """Python, system and processor."""
    return {
        "version": f"plug-jax {plug_jax.__version__}",
        "python": f"Python {platform.python_version()}",
        "system": platform.platform(),
        "cores": f"{cores()} cores",
    }


def examine(import_tensorflow: Callable[[], None]) -> list[Finding]:
    """All checks, in order of dependency."""
    checks: dict[str, Callable[[], str]] = {
        "packages": _packages,
        "gin files": _gin_files,
        "text": lambda: _text(import_tensorflow),
        "devices": _devices,
    }
    return [
        *(_checked(name, check, needed=True) for name, check in checks.items()),
        *(
            _checked(f"extra {name}", lambda name=name: _extra(name), needed=False)  # type: ignore[misc]
            for name in EXTRAS
        ),
    ]


def _checked(name: str, check: Callable[[], str], *, needed: bool) -> Finding:
    started = time.monotonic()
    try:
        text, ok = check(), True
    except _Failed as error:
        text, ok = str(error), False
    except Exception as error:  # a failing import may raise anything
        text, ok = f"{type(error).__name__}: {' '.join(str(error).split())}", False
    seconds = time.monotonic() - started
    return Finding(name, ok, needed, f"{text} ({seconds:.1f} s)" if seconds > 1 else text)


def lacking(distribution: str, extra: str = "") -> list[str]:
    """What is wrong with the packages that a distribution requires.

    Args:
        distribution: its name in the index.
        extra: check only what this extra requires in addition.
    """
    from packaging.requirements import Requirement

    found = []
    for requirement in map(Requirement, metadata.requires(distribution) or ()):
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        with_extra = marker is None or marker.evaluate({"extra": extra})
        if not with_extra or (extra and always):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name} is {version}, not {requirement.specifier}")
        for inner in requirement.extras:
            found += lacking(requirement.name, inner)
    return found


def _packages() -> str:
    try:
        wrong = lacking(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise _Failed("plug-jax is not installed, only imported: pip install plug-jax") from None
    if wrong:
        raise _Failed(f"{'; '.join(wrong)}: pip install --upgrade plug-jax")
    names = ("jax", "flax", "optax", "orbax-checkpoint", "seqio", "tensorflow", "tensorflow-text")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def _extra(name: str) -> str:
    wrong = lacking(_DISTRIBUTION, name)
    if wrong:
        asked = f"pip install '{_DISTRIBUTION}[{name}]'"
        raise _Failed(f"{'; '.join(wrong)}: {asked} for {EXTRAS[name]}")
    return EXTRAS[name]


def _gin_files() -> str:
    from plug_jax.cli import gin_config

    directory = Path(gin_config.search_paths()[-1])
    count = len(list(directory.rglob("*.gin")))
    if not count:
        raise _Failed(f"none in {directory}: install plug-jax again")
    return f"{count} in {directory}"


def _text(import_tensorflow: Callable[[], None]) -> str:
    """Text to tokens with tensorflow, as in a run's data, and back."""
    import_tensorflow()
    from plug_jax.data.vocabularies.vocabulary import default_vocabulary

    text = "今天天气很好"
    vocabulary = default_vocabulary()
    ids = vocabulary.encode_tf(text).numpy().tolist()
    if vocabulary.decode(ids) != text:
        raise _Failed(f"{text!r} decodes to {vocabulary.decode(ids)!r}")
    return f"{text} is {len(ids)} tokens, and decodes to itself"


def _devices() -> str:
    """Each device of this process computes."""
    import jax
    import jax.numpy as jnp

    for device in jax.local_devices():
        ones = jax.device_put(jnp.ones((128, 128)), device)
        total = float(jax.jit(lambda x: jnp.sum(x @ x))(ones))
        if total != 128**3:
            raise _Failed(f"{device}: the sum of a product of ones is {total}, not {128**3}")
    kinds = [f"{device.platform} ({device.device_kind})" for device in jax.local_devices()]
    text = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    if jax.default_backend() == "cpu" and _NVIDIA.exists():
        text += "; there is an NVIDIA driver: pip install 'jax[cuda12]' for its GPUs"
    return text
