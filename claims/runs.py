"""Trains and scores what is not trained and scored yet."""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Sequence
from pathlib import Path

from claims.table import ARMS, LENGTHS, Arm, ByLength, Members
from plug_jax import strict_json
from plug_jax.atomic_files import write_whole
from plug_jax.cli import gin_config
from plug_jax.cli.evaluate import evaluate
from plug_jax.cli.finetuned_runs import load_run
from plug_jax.cli.train import configure
from plug_jax.data.sources.demo_corpus import write_corpus
from plug_jax.data.sources.demo_reviews import DEV, TEST, TRAIN, read_reviews, write_reviews
from plug_jax.data.vocabularies.sentencepiece_training import train_sentencepiece
from plug_jax.errors import PlugError
from plug_jax.finetuning.ensembles import combine
from plug_jax.finetuning.runs import FineTunedRun
from plug_jax.training.loop import train
from plug_jax.training.program import TrainConfig

Scores = dict[str, float]
_GIN = "claims/gin"
_VOCABULARY_SIZE = 2048
_SCORES = "scores.json"  # of a MODEL_DIR: what is kept of a run that is done
_BY_LENGTH = "by_length.json"  # the same of its perplexities by length
_ACCURACY = "accuracy"


class Runs:
    """The runs in a directory: OUTPUT/runs/ARM/SEED is the MODEL_DIR of one."""

    def __init__(self, output: Path, *, scale: int = 1, overrides: Sequence[str] = ()) -> None:
        """Write the texts that they read, if they are not there.

        Each run has `scale` times the steps of its gin file. `overrides` are gin bindings that come
        after those of each arm.
        """
        self._output, self._scale = output, scale
        self._overrides = dict(one.split(" = ", 1) for one in overrides)
        self._corpus = write_corpus(output / "corpus")
        self._vocabulary = output / "vocabulary"
        if not self._vocabulary.is_dir():
            documents = self._corpus.train.read_text(encoding="utf-8").split("\n\n")
            train_sentencepiece(
                documents,
                directory=self._vocabulary,
                vocab_size=_VOCABULARY_SIZE,
                model_type="char",
            )
        self._reviews = write_reviews(read_reviews(), output / "reviews")

    def scores(self, name: str, seed: int) -> Scores:
        """Of an arm's run, which is trained first where that is not done.

        Raises:
            PlugError: the directory holds a run of other settings.
        """
        arm = ARMS[name]
        if isinstance(arm, Members):
            return self._score_members(arm, seed)
        if isinstance(arm, ByLength):
            return self._score_by_length(arm, seed)
        if arm.start is not None:
            self.scores(arm.start, seed)
        config = self._config(name, arm, seed)
        path = Path(config.model_dir) / _SCORES
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["settings"] != config.config_gin:
                raise PlugError(
                    f"{config.model_dir} holds a run of other settings; choose another --output, "
                    "or remove it"
                )
            return dict(kept["scores"])
        print(f"== {name}, seed {seed}", flush=True)
        scores = train(config)
        if arm.fine_tuned:
            run = self._fine_tuned(name, seed)
            scores |= run.metrics(TEST)
            scores["dev_accuracy"] = run.metrics("validation")[_ACCURACY]
        told = {"settings": config.config_gin, "scores": scores}
        write_whole(path, strict_json.dumps(told, indent=2) + "\n")
        gc.collect()
        return scores

    def is_done(self, name: str, seed: int) -> bool:
        """Whether `scores` needs no training."""
        arm = ARMS[name]
        if isinstance(arm, Members):
            return all(self.is_done(member, seed) for member in arm.arms)
        if isinstance(arm, ByLength):
            return (self._model_dir(arm.arm, seed) / _BY_LENGTH).exists()
        return (self._model_dir(name, seed) / _SCORES).exists()

    def _model_dir(self, name: str, seed: int) -> Path:
        return self._output / "runs" / name / str(seed)

    def _config(self, name: str, arm: Arm, seed: int) -> TrainConfig:
        settings = {
            "MODEL_DIR": repr(str(self._model_dir(name, seed))),
            "RANDOM_SEED": str(seed),
            "COMPILATION_CACHE_DIR": self._cache,
            **arm.bindings,
        }
        if arm.start is not None:
            settings["INITIAL_CHECKPOINT"] = repr(str(self._model_dir(arm.start, seed)))
        if arm.fine_tuned:
            splits = {"TRAIN_FILE": TRAIN, "VALIDATION_FILE": DEV, "TEST_FILE": TEST}
            settings |= {macro: repr(str(self._reviews[of])) for macro, of in splits.items()}
        else:
            settings["TRAIN_FILES"] = repr(str(self._corpus.train))
            settings["VALIDATION_FILES"] = repr(str(self._corpus.validation))
            settings["VOCABULARY"] = repr(str(self._vocabulary))
        files = [f"{_GIN}/{arm.gin}.gin"]
        for macro in ("TRAIN_STEPS", "EVAL_EVERY"):
            settings[macro] = str(self._scale * gin_config.macro(macro, files=files, bindings=[]))
        settings |= self._overrides
        return configure(files, [f"{macro} = {value}" for macro, value in settings.items()])

    @property
    def _cache(self) -> str:
        return repr(str(self._output / "compiled"))

    def _score_by_length(self, of: ByLength, seed: int) -> Scores:
        self.scores(of.arm, seed)
        path = self._model_dir(of.arm, seed) / _BY_LENGTH
        if path.exists():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        scores = {f"perplexity_at_{n}": self._perplexity(of.arm, seed, n) for n in LENGTHS}
        write_whole(path, strict_json.dumps(scores, indent=2) + "\n")
        return scores

    def _perplexity(self, name: str, seed: int, length: int) -> float:
        settings = {
            "CHECKPOINT": repr(str(self._model_dir(name, seed))),
            "TEST_FILES": repr(str(self._corpus.validation)),
            "COMPILATION_CACHE_DIR": self._cache,
            "LENGTH": str(length),
        }
        bindings = [f"{macro} = {value}" for macro, value in settings.items()]
        return evaluate([f"{_GIN}/of_length.gin"], bindings)["decoder_perplexity"]

    def _fine_tuned(self, name: str, seed: int) -> FineTunedRun:
        args = argparse.Namespace(data_dir=None, gin_file=None)
        return load_run(args, str(self._model_dir(name, seed)))

    def _score_members(self, members: Members, seed: int) -> Scores:
        scores = {name: self.scores(name, seed) for name in members.arms}
        if members.taken == "best":
            return max(scores.values(), key=lambda one: one["dev_accuracy"])
        runs = [self._fine_tuned(name, seed) for name in members.arms]
        made = combine([run.outputs(TEST) for run in runs])
        return dict(runs[0].records.metrics(TEST, made))
