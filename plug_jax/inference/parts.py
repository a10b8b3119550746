"""An output file made part by part, so that a run that was killed goes on where it was.

For OUTPUT there are, while it is being made, `OUTPUT.manifest.json` (what the rows depend on) and
the directory `OUTPUT.parts` with files of `rows_per_part` rows each, in the order of the input.
OUTPUT itself appears when all are there, and the parts go; the manifest stays. Every file is
written under another name first, so at any moment each is there as a whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from plug_jax.atomic_files import write_whole
from plug_jax.errors import PlugError
from plug_jax.inference.rows import to_json

_BYTES_A_READ = 1 << 20


class PartedOutput:
    """OUTPUT and its parts, on any file system of tf.io.gfile."""

    def __init__(
        self, path: str, settings: Mapping[str, Any], *, rows: int, rows_per_part: int
    ) -> None:
        """Go on with the parts of an earlier run with the same `settings`, or begin.

        An earlier run keeps its `rows_per_part`.

        Args:
          path: OUTPUT.
          settings: JSON, all that the rows depend on.
          rows: how many the output is to have.
          rows_per_part: how many are worked on before they are kept.

        Raises:
            PlugError: what is there was made with other settings or not by us; the directory cannot
                be written.
        """
        self.path = path
        self._manifest, self._parts = f"{path}.manifest.json", f"{path}.parts"
        self.rows, self.rows_per_part = rows, rows_per_part
        settings = json.loads(to_json(settings))
        if path.endswith(".gz"):
            raise PlugError(f"OUTPUT {path} would not be compressed; leave .gz out of its name")
        try:
            self._open(settings)
            self.complete = tf.io.gfile.exists(path)
            self.parts_done = 0 if self.complete else self._whole_parts()
            if self.complete:
                self._remove_parts()
            else:
                tf.io.gfile.makedirs(self._parts)
        except tf.errors.OpError as error:
            raise PlugError(f"cannot write OUTPUT {path}: {error.message}") from error

    def write(self, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep part `number`."""
        write_whole(self._part(number), b"".join(to_json(row) + b"\n" for row in rows))

    def read(self, number: int) -> Iterator[dict[str, Any]]:
        """The rows of a part that is done."""
        yield from _read_rows(self._part(number))

    def read_all(self) -> Iterator[dict[str, Any]]:
        """The rows of OUTPUT, once it is complete."""
        yield from _read_rows(self.path)

    def finish(self) -> None:
        """Make OUTPUT out of all its parts."""
        with tf.io.gfile.GFile(f"{self.path}.tmp", "wb") as whole:
            for number in range(-(-self.rows // self.rows_per_part)):
                with tf.io.gfile.GFile(self._part(number), "rb") as part:
                    while chunk := part.read(_BYTES_A_READ):
                        whole.write(chunk)
        tf.io.gfile.rename(f"{self.path}.tmp", self.path, overwrite=True)
        self._remove_parts()

    def _open(self, settings: Mapping[str, Any]) -> None:
        """Check the manifest that is there, or write one."""
        kept = [self.path] if tf.io.gfile.exists(self.path) else []
        kept += [self._parts] if self._has_parts() else []
        if not tf.io.gfile.exists(self._manifest):
            if kept:
                raise PlugError(
                    f"{' and '.join(kept)} exist{'s' * (len(kept) == 1)} without {self._manifest}, "
                    "which would tell how it was made; remove it or choose another OUTPUT"
                )
        else:
            before = _read_manifest(self._manifest)
            differences = _differences(before["settings"], settings)
            if not differences:
                self.rows_per_part = before["rows_per_part"]
                return
            if kept:
                raise PlugError(
                    f"OUTPUT {self.path} was begun differently: {'; '.join(differences)}. Go on "
                    f"with what it was begun with, choose another OUTPUT, or remove {self.path}.*"
                    f"{f' and {self.path}' if self.path in kept else ''}"
                )
        tf.io.gfile.makedirs(self._parts)
        write_whole(
            self._manifest, to_json({"rows_per_part": self.rows_per_part, "settings": settings})
        )

    def _part(self, number: int) -> str:
        return f"{self._parts}/{number:06d}.jsonl"

    def _has_parts(self) -> bool:
        directory = self._parts
        return tf.io.gfile.isdir(directory) and bool(tf.io.gfile.listdir(directory))

    def _whole_parts(self) -> int:
        """How many parts from the first on are there as a whole."""
        number = 0
        while number * self.rows_per_part < self.rows and tf.io.gfile.exists(self._part(number)):
            with tf.io.gfile.GFile(self._part(number), "rb") as file:
                lines = file.read().count(b"\n")
            # A machine that crashed may have lost some of what it wrote.
            if lines != min(self.rows_per_part, self.rows - number * self.rows_per_part):
                break
            number += 1
        return number

    def _remove_parts(self) -> None:
        if tf.io.gfile.exists(self._parts):
            tf.io.gfile.rmtree(self._parts)


def _read_rows(path: str) -> Iterator[dict[str, Any]]:
    with tf.io.gfile.GFile(path, "rb") as file:
        for line in file:
            yield json.loads(line)


def _read_manifest(path: str) -> dict[str, Any]:
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    try:
        manifest: dict[str, Any] = json.loads(content)
        return {name: manifest[name] for name in ("rows_per_part", "settings")}
    except (ValueError, KeyError, TypeError):
        raise PlugError(f"{path} is no manifest of ours; choose another OUTPUT") from None


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = _flat(before), _flat(now)
    return [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat
