"""The files of a new vocabulary: what may be replaced, and what would contradict them."""

from __future__ import annotations

import os

import tensorflow as tf

from plug_jax.atomic_files import write_whole
from plug_jax.data.vocabularies.tokenizer_files import BESIDE, SETTINGS
from plug_jax.data.vocabularies.vocabulary import SentencePieceVocabulary, WordPieceVocabulary
from plug_jax.errors import PlugError

SENTENCEPIECE, WORDPIECE = SentencePieceVocabulary.FILE_NAME, WordPieceVocabulary.FILE_NAME
# Files that `write_files` replaces, and files of other tokenizers that would be read with them.
_OWN = {SENTENCEPIECE: (SENTENCEPIECE,), WORDPIECE: (WORDPIECE, SETTINGS)}
_FOREIGN = {
    SENTENCEPIECE: (WORDPIECE,),
    WORDPIECE: (SENTENCEPIECE, *(name for name in BESIDE if name != SETTINGS)),
}


def output_path(directory: str | os.PathLike[str], name: str, *, overwrite: bool) -> str:
    """The path of the vocabulary `name`, SENTENCEPIECE or WORDPIECE, to be written there.

    Raises:
      PlugError: it exists and `overwrite` is false, or the directory holds files of another
        tokenizer, which are never replaced.
    """
    directory = os.fspath(directory)
    for own in () if overwrite else _OWN[name]:
        path = os.path.join(directory, own)
        if tf.io.gfile.exists(path):
            raise PlugError(f"{path} exists; choose another directory or ask to overwrite it.")
    for foreign in _FOREIGN[name]:
        path = os.path.join(directory, foreign)
        if tf.io.gfile.exists(path):
            raise PlugError(
                f"{path} exists, which belongs to another tokenizer than the new {name}; choose "
                "another directory or remove it."
            )
    return os.path.join(directory, name)


def write_files(path: str, content: bytes, beside: str, settings: bytes) -> None:
    """Writes the vocabulary to `path`, last: if it is there, so is the file `beside` it.

    Args:
      path: of `output_path`.
      content: the vocabulary's.
      beside: the other file's name.
      settings: the other file's content.
    """
    directory = os.path.dirname(path)
    tf.io.gfile.makedirs(directory)
    write_whole(os.path.join(directory, beside), settings)
    write_whole(path, content)
