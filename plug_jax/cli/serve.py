"""`plug-jax serve`: a web page and OpenAI-compatible endpoints for a checkpoint."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from plug_jax.cli import gin_config
from plug_jax.config import ComputeDtype
from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields
from plug_jax.standard_error import say

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from plug_jax.inference.encoder import EncoderModel
    from plug_jax.inference.fine_tuned import FineTunedModel
    from plug_jax.inference.slots import Slots
    from plug_jax.partitioning import Partitioner
    from plug_jax.serving.reader import Reader
    from plug_jax.serving.worker import Worker

SUMMARY = "Serve a checkpoint: a page to try it, and OpenAI's completions or embeddings."
EXAMPLE = """examples:
  plug-jax serve --checkpoint /path/to/model_dir
  plug-jax serve --checkpoint /path/to/run1               # an encoder: /v1/embeddings
  plug-jax serve --checkpoint finetuned/tnews             # and if fine-tuned /v1/classify
  plug-jax serve --checkpoint /path/to/model_dir --slots 16 --gin_file=mesh/cpu8.gin
  plug-jax serve --checkpoint /path/to/model_dir --host 0.0.0.0 --api_keys keys.txt \\
    --ssl_certfile cert.pem --ssl_keyfile key.pem
  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
    -d '{"prompt": "今天天气", "max_tokens": 64}'

Ctrl-C or SIGTERM ends it: running requests have 10 seconds to finish, and the status is 0.
docs/serving.md describes the endpoint and its limits.
"""
UNKNOWN_ARGUMENTS = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The settings of runs/serve.gin and the options."""

    checkpoint: str
    host: str
    port: int
    slots: int
    max_queue: int
    max_prompt_tokens: int | None = None  # with [CLS] and [SEP]; None: the model's limit
    max_new_tokens: int | None = None  # None: the model's limit
    model_name: str | None = None  # None: the directory's name
    api_keys: str | None = None  # file of keys; None: PLUG_JAX_API_KEY, if set
    max_client_texts: int | None = None  # at a time; None: no limit
    ssl_certfile: str | None = None  # PEM; None: not encrypted
    ssl_keyfile: str | None = None  # PEM; None: the key is with the certificate
    warm_up: bool = True
    partitioner: Partitioner | None = None  # from a mesh/ file; None: the first device
    dtype: ComputeDtype | None = None  # None: the training dtype
    int8: bool = False  # 8-bit weights

    def __post_init__(self) -> None:
        from plug_jax.partitioning import Partitioner

        check_fields(self, {"Partitioner": Partitioner})
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise PlugError("ssl_keyfile needs ssl_certfile")


# Each option sets the macro of its name in the gin file, which has the defaults.
_OPTIONS: dict[str, tuple[type, str]] = {
    "checkpoint": (str, "checkpoint directory (a run's MODEL_DIR, or one step)"),
    "host": (str, "address to listen on (127.0.0.1: this machine alone)"),
    "port": (int, "port to listen on, 0 = a free one (8000)"),
    "slots": (int, "texts processed at a time (8)"),
    "max_queue": (int, "texts that may wait for a slot; further requests get status 429 (64)"),
    "max_prompt_tokens": (int, "longest prompt, with [CLS] and [SEP] (the model's limit)"),
    "max_new_tokens": (int, "longest text (the model's limit)"),
    "model_name": (str, "what clients call the model (the directory's name)"),
    "api_keys": (
        str,
        "file of API keys, one per line (or set PLUG_JAX_API_KEY; with neither, no key is needed)",
    ),
    "max_client_texts": (
        int,
        "texts per client at a time; further requests get status 429 (no limit)",
    ),
    "ssl_certfile": (str, "certificate, PEM: enables https"),
    "ssl_keyfile": (str, "its private key, PEM (in the certificate's file)"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax serve`."""
    for name, (kind, text) in _OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, help=text)
    parser.add_argument(
        "--int8", action="store_true", default=None, help="quantise the weights to 8 bits"
    )
    gin_config.add_arguments(parser, default="runs/serve.gin")


def run(args: argparse.Namespace) -> int:
    """Serve until a signal arrives."""
    given = {name.upper(): getattr(args, name) for name in (*_OPTIONS, "int8")}
    bindings = [f"{macro} = {value!r}" for macro, value in given.items() if value is not None]
    bindings += gin_config.overrides(args.unknown)
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise PlugError(f"{error.name} is missing; run pip install 'plug-jax[serve]'") from error
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    serve(gin_config.configured(ServeConfig, files=args.gin_file, bindings=bindings))
    return 0


def serve(config: ServeConfig) -> None:
    """Load the model and answer requests until a signal arrives.

    Raises:
        PlugError: the port is taken, there is no such checkpoint, a number is out of range.
    """
    from plug_jax.serving import server
    from plug_jax.serving.clients import Shares, read_keys

    # Find errors before loading the model, which takes time.
    keys, shares = read_keys(config.api_keys), Shares(config.max_client_texts)
    tls = None
    if config.ssl_certfile is not None:
        tls = server.tls_context(config.ssl_certfile, config.ssl_keyfile)
    with server.listen(config.host, config.port) as sock:
        if not server.is_loopback(sock):
            _warn(config.host, keys=bool(keys), encrypted=tls is not None)
        told = {
            "model_name": config.model_name or os.path.basename(os.path.abspath(config.checkpoint)),
            "allowed_hosts": server.allowed_hosts(sock, config.host),
            "keys": keys,
            "shares": shares,
        }
        with _served(config) as (worker, make_app):
            address = server.url(sock, config.host, encrypted=tls is not None)
            app = make_app(**told)
            print(f"Serving {told['model_name']} at {address} (Ctrl-C stops it)", flush=True)
            server.Server(app, worker, tls=tls).run(sockets=[sock])


@contextlib.contextmanager
def _served(config: ServeConfig) -> Iterator[tuple[Worker[Any], Callable[..., Starlette]]]:
    """The model's worker, and the function that makes its application."""
    from plug_jax.serving.app import make_app, make_reading_app
    from plug_jax.serving.engine import Engine

    if not only_reads(config.checkpoint):
        with Engine(_slots(config), max_queue=config.max_queue) as engine:
            yield engine, functools.partial(make_app, engine)
        return
    reader, encoder, labeler = _reader(config)
    with reader:
        yield reader, functools.partial(make_reading_app, reader, encoder, labeler)


def only_reads(checkpoint: str) -> bool:
    """Whether a checkpoint is an encoder, or was fine-tuned with its own head."""
    from plug_jax.checkpoints.saved_model import open_checkpoint

    saved = open_checkpoint(checkpoint)
    return saved.task is not None or saved.config.num_decoder_layers == 0


def _warn(host: str, *, keys: bool, encrypted: bool) -> None:
    """Warn of missing protection on an address that others can reach."""
    if not keys:
        say(
            f"warning: {host} is reachable from other machines: anyone who reaches the port can "
            "use the model without a password (--api_keys requires one)"
        )
    if not encrypted:
        say(
            f"warning: {host} is reachable from other machines: requests can be read in transit, "
            "unless a proxy or --ssl_certfile encrypts them"
        )


def _slots(config: ServeConfig) -> Slots:
    """The model, ready to generate."""
    from plug_jax.inference.model import InferenceModel
    from plug_jax.inference.slots import Slots

    say(f"loading {config.checkpoint}")
    model = InferenceModel.load(
        config.checkpoint, config.partitioner, config.dtype, int8=config.int8
    )
    prompt, new = (
        model.config.max_positions if limit is None else limit
        for limit in (config.max_prompt_tokens, config.max_new_tokens)
    )
    slots = Slots(model, count=config.slots, max_prompt_tokens=prompt, max_new_tokens=new)
    if config.warm_up:
        _warm_up(slots.warm_up())
    return slots


def _reader(config: ServeConfig) -> tuple[Reader, EncoderModel, FineTunedModel | None]:
    """The encoder, and the fine-tuned model if it classifies texts, ready to read."""
    from plug_jax.checkpoints.saved_model import open_checkpoint
    from plug_jax.inference.encoder import EncoderModel
    from plug_jax.inference.encoding import Embedding
    from plug_jax.inference.fine_tuned import FineTunedModel
    from plug_jax.inference.prediction import Prediction
    from plug_jax.inference.request_options import EmbeddingOptions
    from plug_jax.serving.reader import Reader, Reading
    from plug_jax.serving.readings import labels_of

    for name in ("max_prompt_tokens", "max_new_tokens"):
        if getattr(config, name) is not None:
            raise PlugError(
                f"{name} is for models that generate text; this checkpoint is an encoder"
            )
    reader = Reader(batch_size=config.slots, max_queue=config.max_queue)
    say(f"loading {config.checkpoint}")
    told = (config.checkpoint, config.partitioner, config.dtype)
    labeler = None
    if open_checkpoint(config.checkpoint).task is None:
        encoder = EncoderModel.load(*told, int8=config.int8)
    else:
        model = FineTunedModel.load(*told, int8=config.int8, batch_size=config.slots)
        encoder = EncoderModel.of(model)
        labeler = model if labels_of(model) is not None else None
    readings = [Reading(encoder, Embedding(options=EmbeddingOptions()))]
    if labeler is not None:
        readings.append(Reading(labeler, Prediction()))
    if config.warm_up:
        _warm_up(reader.warm_up(readings))
    return reader, encoder, labeler


def _warm_up(programs: Iterator[str]) -> None:
    started = time.monotonic()
    for program in programs:
        say(f"compiling for {program}")
    say(f"compiled in {time.monotonic() - started:.0f} s")
