"""The Python interface: `plug_jax.load` and the model's methods."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, overload

import numpy as np

from plug_jax.checkpoints.saved_model import SavedModel, open_checkpoint
from plug_jax.config import ComputeDtype, PlugConfig
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.downstream.kinds import described_format
from plug_jax.downstream.text_format import TextFormat
from plug_jax.errors import PlugError, shortened, shown
from plug_jax.inference import encoding, generator, mask_filling
from plug_jax.inference.batches import batches, numbered
from plug_jax.inference.classification import Classification
from plug_jax.inference.encoder import EncoderModel
from plug_jax.inference.encoding import EncodedText
from plug_jax.inference.fine_tuned import FineTunedModel
from plug_jax.inference.generator import GeneratedText
from plug_jax.inference.jobs import Work
from plug_jax.inference.mask_filling import FilledMask, check_fills_masks
from plug_jax.inference.model import InferenceModel, NoNumbersError, check_writes
from plug_jax.inference.placement import PlacedModel
from plug_jax.inference.prediction import Prediction
from plug_jax.inference.request_options import EmbeddingOptions, GenerationOptions, MaskOptions
from plug_jax.inference.rows import Row
from plug_jax.inference.scoring import Score, Scoring, pairs_size, score_pairs
from plug_jax.partitioning import Partitioner

Options = TypeVar("Options")
Mesh = Partitioner | Mapping[str, int]
Texts = list[str] | tuple[str, ...]  # because a str is also a Sequence[str] for type checkers


@dataclasses.dataclass(frozen=True)
class ClassifiedText:
    """The likeliest label of a text, and all labels' probabilities."""

    prediction: str
    probabilities: dict[str, float]
    left_out: int = 0  # characters cut from the texts, for which there was no room


def load(
    checkpoint: str | os.PathLike[str],
    *,
    dtype: ComputeDtype | None = None,
    mesh: Mesh | None = None,
    int8: bool = False,
    batch_size: int = 32,
    verify: bool = True,
) -> Model:
    """Load a checkpoint of either stage, converted or fine-tuned.

    Args:
        checkpoint: a MODEL_DIR of `plug-jax train` or `plug-jax convert` (its best checkpoint, if
            the run keeps one, else the newest), or MODEL_DIR/checkpoints/<step>.
        dtype: "bfloat16" or "float32", for computation and parameters in memory; None: the
            computation dtype of training, with float32 parameters.
        mesh: sizes of the mesh, such as {"fsdp": 4, "tensor": 2}, or a `Partitioner`; None: the
            first device.
        int8: store the kernels in 8 bits (`pip install 'plug-jax[int8]'`).
        batch_size: texts per batch.
        verify: check the parameters against their checksums first.

    Raises:
        PlugError: there is no checkpoint, it is damaged or has no vocabulary, or the mesh does not
            fit it.
    """
    if not isinstance(checkpoint, str | os.PathLike):
        raise PlugError(f"a checkpoint is a path, not {_kind(checkpoint)}")
    if type(batch_size) is not int or batch_size < 1:
        raise PlugError(f"batch_size is {shown(batch_size)}; it must be a whole number, 1 or more")
    for name, flag in (("int8", int8), ("verify", verify)):
        if type(flag) is not bool:
            raise PlugError(f"{name} is {shown(flag)}; it must be True or False")
    saved = open_checkpoint(os.path.expanduser(os.fspath(checkpoint)))
    where, partitioner = saved.path, _partitioner(mesh)
    placed: InferenceModel | FineTunedModel | EncoderModel
    if saved.task is not None:
        placed = FineTunedModel.load(
            where, partitioner, dtype, int8=int8, batch_size=batch_size, verify=verify
        )
    elif saved.config.num_decoder_layers:
        placed = InferenceModel.load(where, partitioner, dtype, int8=int8, verify=verify)
    else:
        placed = EncoderModel.load(where, partitioner, dtype, int8=int8, verify=verify)
    return Model(saved, placed, batch_size=batch_size)


class Model:
    """A loaded checkpoint. Methods that it does not support raise a PlugError.

    Methods take a text and return its result, or a list of texts and return a list of results.
    Texts are sorted by length and processed `batch_size` at a time; results do not depend on other
    texts. The first call with a length bucket and number of rows compiles. Keyword options are the
    fields of the named dataclass.

    All methods raise PlugError for invalid requests, and its subclass NoNumbersError if the model's
    outputs are NaN or infinite.
    """

    def __init__(self, saved: SavedModel, placed: PlacedModel, *, batch_size: int = 32) -> None:
        """Wrap the checkpoint from which `placed` was read; see `load`."""
        self._saved = saved
        self._placed = placed
        self.batch_size = batch_size

    def __repr__(self) -> str:
        c = self.config
        layers = f"{c.num_encoder_layers} + {self._saved.config.num_decoder_layers} layers"
        task = f", fine-tuned for {self._saved.task['name']!r}" if self._saved.task else ""
        return f"plug_jax.Model({os.fspath(self._saved.path)!r}, {layers} of {c.hidden_size}{task})"

    @property
    def config(self) -> PlugConfig:
        """Sizes and computation dtype."""
        return self._placed.config

    @property
    def vocabulary(self) -> PlugVocabulary:
        """Text to ids and back."""
        return self._placed.vocabulary

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of a model fine-tuned for text classification. PlugError for others."""
        return _label_format(self._saved).labels

    @overload
    def generate(
        self, prompts: str, options: GenerationOptions | None = ..., **fields: Any
    ) -> list[GeneratedText]: ...
    @overload
    def generate(
        self, prompts: Texts, options: GenerationOptions | None = ..., **fields: Any
    ) -> list[list[GeneratedText]]: ...
    def generate(
        self, prompts: str | Sequence[str], options: GenerationOptions | None = None, **fields: Any
    ) -> Any:
        """`num_samples` texts per prompt, best first for beam search; `plug-jax generate`.

        Options are `GenerationOptions`: `model.generate("天", max_new_tokens=64, seed=7)`. A prompt
        in a list gets the same texts as alone.
        """
        writer = self._writer()
        chosen = _chosen(GenerationOptions, options, fields)
        texts = max(chosen.num_samples, chosen.num_beams)
        items = numbered(_listed(prompts), writer.prompt_ids)
        found: list[list[GeneratedText]] = [[] for _ in items]
        for places, batch in batches(writer, items, lambda ids: (texts, len(ids)), self.batch_size):
            written = generator.generate(writer, batch, chosen, seeds=[chosen.seed] * len(batch))
            for place, of_prompt in zip(places, written, strict=False):
                found[place] = of_prompt
        return _like(prompts, found)

    def stream(
        self, prompt: str, options: GenerationOptions | None = None, **fields: Any
    ) -> Iterator[GeneratedText]:
        """One text as it grows, a few tokens at a time; the last equals `generate`'s."""
        chosen = _chosen(GenerationOptions, options, fields)
        if chosen.num_samples > 1 or chosen.num_beams > 1:
            raise PlugError("a stream is one sampled text: num_samples and num_beams must be 1")
        if not isinstance(prompt, str):
            raise PlugError(f"a stream has one prompt, a text, not {_kind(prompt)}")
        return generator.stream(self._writer(), prompt, chosen)

    @overload
    def score(self, prompts: str, targets: str, *, sep: bool = ...) -> Score: ...
    @overload
    def score(self, prompts: str, targets: Texts, *, sep: bool = ...) -> list[Score]: ...
    @overload
    def score(self, prompts: Texts, targets: Texts, *, sep: bool = ...) -> list[Score]: ...
    @overload
    def score(
        self, prompts: Texts, targets: list[list[str]], *, sep: bool = ...
    ) -> list[list[Score]]: ...
    def score(self, prompts: Any, targets: Any, *, sep: bool = True) -> Any:
        """The log-likelihood of a text after its prompt; `plug-jax score`.

        A prompt has one target, or a list of them. `sep`: count the [SEP] that ends a text.
        """
        scorer, work = self._writer(), Scoring(sep=sep)
        listed = _listed(prompts)
        if isinstance(prompts, str):
            asked = [targets if isinstance(targets, str) else _listed(targets)]
        elif isinstance(targets, str):
            raise PlugError("a list of prompts has a list of targets, not one text")
        else:
            asked = [one if isinstance(one, str) else _listed(one) for one in _items(targets)]
        if len(asked) != len(listed):
            raise PlugError(f"there are {len(listed)} prompts and {len(asked)} targets")
        rows = [
            Row({"prompt": prompt, "target": one})
            for prompt, one in zip(listed, asked, strict=True)
        ]
        items = numbered(rows, lambda row: work.prepare(scorer, row, 0))
        found: list[Any] = [None] * len(items)
        for places, batch in batches(scorer, items, pairs_size, self.batch_size):
            for place, scores in zip(places, score_pairs(scorer, batch), strict=False):
                if not all(score.has_numbers for score in scores):
                    raise NoNumbersError
                found[place] = scores[0] if items[place].single else scores
        return _like(prompts, found)

    @overload
    def classify(
        self, texts: str, text_pairs: str | None = ..., *, labels: Any = ..., **fields: Any
    ) -> ClassifiedText: ...
    @overload
    def classify(
        self,
        texts: Texts,
        text_pairs: Texts | None = ...,
        *,
        labels: Any = ...,
        **fields: Any,
    ) -> list[ClassifiedText]: ...
    def classify(
        self,
        texts: str | Sequence[str],
        text_pairs: str | Sequence[str] | None = None,
        *,
        labels: Sequence[str] | Mapping[str, str] | None = None,
        **fields: Any,
    ) -> Any:
        """The likeliest label of each text, or pair of texts; `plug-jax classify`.

        A model fine-tuned for text classification has its own labels. With a decoder, pass labels,
        or a mapping from labels to words, for zero-shot classification; options are those of
        `plug_jax.inference.classification.Classification`, such as `template`.
        """
        rows = _text_rows(texts, text_pairs)
        if labels is None:
            if self._saved.task is None and self._saved.config.num_decoder_layers:
                raise PlugError(
                    "this checkpoint was not fine-tuned to label texts: give the labels to choose "
                    "from (labels=[...]), and it classifies zero-shot"
                )
            _label_format(self._saved)
            if fields:
                raise PlugError(f"{', '.join(fields)}: of zero-shot classification, with labels")
            found = self._answers(self._answerer(), Prediction(), rows)
        else:
            if self._saved.task is not None:
                raise PlugError(
                    f"this checkpoint was fine-tuned for {self._saved.task['name']!r} and answers "
                    "with its own head: leave out labels"
                )
            if isinstance(labels, str):
                raise PlugError(f"labels are a list of texts, not one text: [{shown(labels)}, ...]")
            if not isinstance(labels, Mapping):
                labels = {label: label for label in _listed(labels)}
            work = _chosen(Classification, None, {"labels": labels, **fields})
            if text_pairs is not None:
                work.check_reads("text_pair")
            found = self._answers(self._writer(), work, rows)
        return _like(texts, [_classified(one) for one in found])

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A fine-tuned model's answers for rows of its task, as `plug-jax infer` writes them.

        Labels, choices, answers, entities or numbers: docs/inference.md has the fields of a row and
        of an answer.
        """
        wanted = 'a list of rows, dicts such as {"text": "..."}'
        listed = _items(rows, wanted)
        for number, row in enumerate(listed):
            if not isinstance(row, Mapping):
                raise PlugError(f"there must be {wanted}; number {number} (from 0) is {_kind(row)}")
        return self._answers(self._answerer(), Prediction(), [Row(dict(row)) for row in listed])

    @overload
    def encode(self, texts: str, *, max_length: int | None = ...) -> EncodedText: ...
    @overload
    def encode(self, texts: Texts, *, max_length: int | None = ...) -> list[EncodedText]: ...
    def encode(self, texts: str | Sequence[str], *, max_length: int | None = None) -> Any:
        """Tokens with their character spans and encoder states.

        A text that is too long is an error; with `max_length` (tokens, including [CLS] and [SEP])
        its end is cut, and `left_out` is the number of characters cut.
        """
        found = encoding.encode(
            self._encoder,
            _listed(texts),
            max_length=EmbeddingOptions(max_length=max_length).max_length,
            batch_size=self.batch_size,
        )
        return _like(texts, found)

    def embed(
        self,
        texts: str | Sequence[str],
        options: EmbeddingOptions | None = None,
        **fields: Any,
    ) -> np.ndarray:
        """Vectors, float32 [texts, hidden_size], or [hidden_size] for one text; `plug-jax embed`.

        Options are `EmbeddingOptions`: `model.embed(texts, pooling="cls", normalize=True)`.
        """
        found = encoding.embed(
            self._encoder,
            _listed(texts),
            _chosen(EmbeddingOptions, options, fields),
            batch_size=self.batch_size,
        )
        vectors: np.ndarray = found[0] if isinstance(texts, str) else found
        return vectors

    @overload
    def fill_mask(
        self, texts: str, options: MaskOptions | None = ..., **fields: Any
    ) -> list[FilledMask]: ...
    @overload
    def fill_mask(
        self, texts: Texts, options: MaskOptions | None = ..., **fields: Any
    ) -> list[list[FilledMask]]: ...
    def fill_mask(
        self, texts: str | Sequence[str], options: MaskOptions | None = None, **fields: Any
    ) -> Any:
        """Candidates for each [MASK] in a text, best first; `plug-jax fill-mask`.

        Options are `MaskOptions`: `model.fill_mask("北[MASK]是首都", top_k=10)`.
        """
        check_fills_masks(self._saved)
        found = mask_filling.fill(
            self._encoder,
            _listed(texts),
            _chosen(MaskOptions, options, fields),
            batch_size=self.batch_size,
        )
        return _like(texts, found)

    @functools.cached_property
    def _encoder(self) -> EncoderModel:
        placed = self._placed
        return placed if isinstance(placed, EncoderModel) else EncoderModel.of(placed)

    def _writer(self) -> InferenceModel:
        """The model with its decoder. PlugError without one."""
        check_writes(self._saved)
        assert isinstance(self._placed, InferenceModel)
        return self._placed

    def _answerer(self) -> FineTunedModel:
        """The model with its head. PlugError if it was not fine-tuned."""
        described_format(self._saved.task)
        assert isinstance(self._placed, FineTunedModel)
        return self._placed

    def _answers(
        self, model: PlacedModel, work: Work[Any, Any], rows: Sequence[Row]
    ) -> list[dict[str, Any]]:
        items = numbered(rows, lambda row: work.prepare(model, row, 0))
        found: list[dict[str, Any]] = [{} for _ in items]
        for places, batch in batches(model, items, work.size, self.batch_size):
            for place, answer in zip(places, work.answer(model, batch), strict=False):
                if isinstance(answer, NoNumbersError):
                    raise answer
                found[place] = answer.fields
        return found


def _partitioner(mesh: Mesh | None) -> Partitioner | None:
    if isinstance(mesh, Mapping):
        return _chosen(Partitioner, None, mesh)
    if mesh is not None and not isinstance(mesh, Partitioner):
        raise PlugError(
            f'mesh must be sizes such as {{"fsdp": 4}} or a Partitioner, not {shown(mesh)}'
        )
    return mesh


def _label_format(saved: SavedModel) -> TextFormat:
    """The checkpoint's format. PlugError if it was not fine-tuned for text classification."""
    found = described_format(saved.task)
    if not isinstance(found, TextFormat):
        assert saved.task is not None
        raise PlugError(
            f"this checkpoint was fine-tuned for {saved.task['name']!r}, which does not label "
            "texts; `predict` gives its answers"
        )
    return found


def _chosen(kind: type[Options], options: Options | None, fields: Mapping[str, Any]) -> Options:
    """Options with some fields set. PlugError for an unknown field."""
    known = [field.name for field in dataclasses.fields(kind) if field.init]  # type: ignore[arg-type]
    if unknown := [name for name in fields if name not in known]:
        raise PlugError(
            f"there is no option {shortened(', '.join(map(str, unknown)))}; there are: "
            f"{', '.join(known)}"
        )
    if options is None:
        return kind(**fields)
    if not isinstance(options, kind):
        raise PlugError(f"options must be of {kind.__name__}, not {type(options).__name__}")
    return dataclasses.replace(options, **fields)  # type: ignore[type-var]


def _text_rows(texts: str | Sequence[str], pairs: str | Sequence[str] | None) -> list[Row]:
    listed = _listed(texts)
    if pairs is None:
        return [Row({"text": text}) for text in listed]
    seconds = _listed(pairs)
    if len(seconds) != len(listed):
        raise PlugError(f"there are {len(listed)} texts and {len(seconds)} text_pairs")
    return [
        Row({"text": text, "text_pair": pair}) for text, pair in zip(listed, seconds, strict=True)
    ]


def _classified(fields: Mapping[str, Any]) -> ClassifiedText:
    names = (field.name for field in dataclasses.fields(ClassifiedText))
    return ClassifiedText(**{name: fields[name] for name in names if name in fields})


def _listed(texts: str | Sequence[str]) -> list[str]:
    """A list of texts. PlugError for anything else."""
    listed = [texts] if isinstance(texts, str) else _items(texts)
    for number, text in enumerate(listed):
        if not isinstance(text, str):
            raise PlugError(f"number {number} (from 0) is not text but {_kind(text)}")
    return listed


def _items(values: Any, wanted: str = "a text or a list of them") -> list[Any]:
    """A list of items. PlugError for anything else than what is `wanted`."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise PlugError(f"there must be {wanted}, not {_kind(values)}")
    return list(values)


def _kind(value: Any) -> str:
    return type(value).__name__


def _like(given: object, found: list[Any]) -> Any:
    """The results, or the single result of a single text."""
    return found[0] if isinstance(given, str) else found
