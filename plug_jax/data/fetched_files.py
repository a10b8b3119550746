"""Reads small files of downloaded models; detects pointers and error pages in their place."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import tensorflow as tf

from plug_jax.errors import PlugError

_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGE = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")


def stand_in(head: bytes) -> str | None:
    """What a broken download is, by its first 1,024 bytes, and what to do; else None."""
    if not head:
        return "is empty: the download failed; fetch it again"
    if head.startswith(_POINTER):
        size = re.search(rb"^size (\d+)$", head, re.MULTILINE)
        of = f" of {int(size[1]):,} bytes" if size else ""
        return (
            f"is a git-lfs pointer: it stands for a file{of} that git has not fetched; run "
            "`git lfs install` and `git lfs pull` in its directory"
        )
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGE):
        return (
            "is a web page: the download got the page about the file, an error or a login in its "
            "place; fetch the file itself"
        )
    return None


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The content of a file, local or not. PlugError if missing or a broken download."""
    try:
        with tf.io.gfile.GFile(os.fspath(path), "rb") as file:
            content: bytes = file.read()
    except tf.errors.OpError as error:
        raise PlugError(f"cannot read {os.fspath(path)}: {error.message}") from error
    if what := stand_in(content[:1024]):
        raise PlugError(f"{os.fspath(path)} {what}")
    return content


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object. PlugError as `read_file`, or if the file has anything else."""
    try:
        content = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise PlugError(f"{os.fspath(path)} is not JSON, or cut short: {error}") from error
    if not isinstance(content, dict):
        raise PlugError(f"{os.fspath(path)} is not a JSON object")
    return content
