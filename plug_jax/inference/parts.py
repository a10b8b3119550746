"""An output file written in parts, so that a killed run can resume.

While OUTPUT is being made, there are `OUTPUT.manifest.json` (what the rows depend on) and the
directory `OUTPUT.parts` with files of `rows_per_part` rows each, in input order. When all parts
are complete, OUTPUT appears and the parts are removed; the manifest stays. All files are written
atomically.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from plug_jax.atomic_files import sync, write_whole
from plug_jax.errors import PlugError, shown
from plug_jax.file_names import JSON_LINES, check_output_file
from plug_jax.inference.rows import to_json

_BYTES_A_READ = 1 << 20


class PartedOutput:
    """OUTPUT and its parts, on any file system of tf.io.gfile."""

    def __init__(
        self, path: str, settings: Mapping[str, Any], *, rows: int, rows_per_part: int
    ) -> None:
        """Resume from the parts of an earlier run with the same `settings`, or begin.

        An earlier run keeps its `rows_per_part`.

        Args:
          path: OUTPUT.
          settings: JSON, everything that the rows depend on.
          rows: number of output rows.
          rows_per_part: number of rows saved at a time.

        Raises:
            PlugError: existing files have other settings or are not ours; the directory cannot be
                written; the name suggests another format.
        """
        self.path = path
        self._manifest, self._parts = f"{path}.manifest.json", f"{path}.parts"
        self.rows, self.rows_per_part = rows, rows_per_part
        settings = json.loads(to_json(settings))
        check_output_file("OUTPUT", path, JSON_LINES)
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
        """Save part `number`."""
        write_whole(self._part(number), b"".join(to_json(row) + b"\n" for row in rows))

    def read(self, number: int) -> Iterator[dict[str, Any]]:
        """The rows of a finished part."""
        yield from _read_rows(self._part(number))

    def read_all(self) -> Iterator[dict[str, Any]]:
        """The rows of OUTPUT, once it is complete."""
        yield from _read_rows(self.path)

    def finish(self) -> None:
        """Join all parts into OUTPUT."""
        with tf.io.gfile.GFile(f"{self.path}.tmp", "wb") as whole:
            for number in range(-(-self.rows // self.rows_per_part)):
                with tf.io.gfile.GFile(self._part(number), "rb") as part:
                    while chunk := part.read(_BYTES_A_READ):
                        whole.write(chunk)
        sync(f"{self.path}.tmp")  # before the parts are removed
        tf.io.gfile.rename(f"{self.path}.tmp", self.path, overwrite=True)
        self._remove_parts()

    def _open(self, settings: Mapping[str, Any]) -> None:
        """Check an existing manifest, or write one."""
        kept = [self.path] if tf.io.gfile.exists(self.path) else []
        kept += [self._parts] if self._has_parts() else []
        if not tf.io.gfile.exists(self._manifest):
            if kept:
                raise PlugError(
                    f"{' and '.join(kept)} exist{'s' * (len(kept) == 1)} without {self._manifest}, "
                    "which would record how it was made; remove it or choose another OUTPUT"
                )
        else:
            before = _read_manifest(self._manifest)
            differences = _differences(before["settings"], settings)
            if not differences:
                self.rows_per_part = before["rows_per_part"]
                return
            if kept:
                raise PlugError(
                    f"OUTPUT {self.path} was started with other settings: "
                    f"{'; '.join(differences)}. Resume with the same settings, choose another "
                    f"OUTPUT, or remove {self.path}.*"
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
        """Number of complete parts from the first on."""
        number = 0
        while number * self.rows_per_part < self.rows and tf.io.gfile.exists(self._part(number)):
            with tf.io.gfile.GFile(self._part(number), "rb") as file:
                lines = file.read().count(b"\n")
            # A crashed machine may have lost some of its writes.
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
        raise PlugError(f"{path} is not a manifest of plug-jax; choose another OUTPUT") from None


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = _flat(before), _flat(now)
    return [
        f"{name} was {shown(old.get(name))} and is {shown(new.get(name))}"
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
