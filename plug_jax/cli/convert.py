"""`plug-jax convert`: imports weights from PyTorch and t5x, exports to PyTorch, verifies."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from plug_jax.cli.arguments import positive
from plug_jax.cli.objective_names import objectives_named
from plug_jax.errors import PlugError

if TYPE_CHECKING:
    from collections.abc import Callable

    from plug_jax.convert.from_torch import Imported

SUMMARY = "Import and export PyTorch weights (PLUG, BERT, StructBERT); import those of a t5x run."
EXAMPLE = """examples:
  plug-jax convert import-plug --input plug_model --vocabulary vocab.txt --output plug
  plug-jax convert import-hf --input chinese-roberta-wwm-ext-large --output roberta
  plug-jax convert import-t5x --input t5x_run --output run2_again
  plug-jax convert verify --checkpoint plug --golden outputs.npz
  plug-jax convert export-hf --checkpoint run1 --output structbert
  plug-jax convert export-plug --checkpoint run2 --ranks 8 --output plug_again

docs/convert.md describes the layouts. An import writes a MODEL_DIR with one checkpoint, for
every command that takes one, and for INITIAL_CHECKPOINT.
"""

_DTYPES = ("float32", "float16", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommands and their flags."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")

    def command(name: str, text: str, run: Callable[[argparse.Namespace], int]) -> Callable:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub.add_argument

    add = command("import-plug", "read PLUG's released layout (mp_rank_*.pt)", _import_plug)
    _add_import_arguments(add)
    add(
        "--encoder_final_norm_repeats",
        type=int,
        choices=(1, 2),
        help="default: as config.json says, else 2, as released inference computes; 1 reproduces "
        "the released training code",
    )
    add = command("import-hf", "read a Hugging Face directory of a BERT", _import_hf)
    _add_import_arguments(add)
    add(
        "--num_sentence_classes",
        type=positive,
        metavar="N",
        help="classes of a fresh sentence_head",
    )

    add = command("import-t5x", "read a checkpoint of a t5x run (docs/t5x.md)", _import_t5x)
    add("--input", required=True, metavar="DIR", help="t5x's MODEL_DIR, or MODEL_DIR/checkpoint_N")
    add("--output", required=True, metavar="DIR", help="the MODEL_DIR to write")

    add = command("export-plug", "write PLUG's released layout", _export_plug)
    _add_export_arguments(add)
    add(
        "--ranks",
        type=positive,
        metavar="N",
        help="model-parallel ranks (default: as imported, else 1)",
    )
    add("--tag", default="1", help="directory of the checkpoint in the output (%(default)s)")
    add = command(
        "export-hf", "write a BERT for transformers, or a whole PLUG as safetensors", _export_hf
    )
    _add_export_arguments(add)

    add = command("verify", "compare a checkpoint's outputs with those in a file", _verify)
    add("--checkpoint", required=True, metavar="DIR", help="a MODEL_DIR, or one step of it")
    add("--golden", required=True, metavar="FILE", help=".npz of inputs and of PyTorch's outputs")
    add("--tolerance", type=float, default=1e-4, help="largest absolute difference (%(default)s)")
    add("--json", action="store_true", help="one JSON object on standard output")


def _add_import_arguments(add: Callable) -> None:
    add("--input", required=True, metavar="DIR", help="the directory of the weights")
    add("--output", required=True, metavar="DIR", help="the checkpoint to write")
    add("--vocabulary", metavar="PATH", help="default: the one next to the weights, if any")
    add("--dtype", choices=_DTYPES, help="dtype of all arrays (default: each as it is stored)")
    add(
        "--fresh",
        nargs="+",
        default=(),
        metavar="HEAD",
        help="initialise these from scratch instead of reading them: mlm_head, sentence_head, "
        "pooler",
    )
    add("--drop", nargs="+", default=(), metavar="NAME", help="skip these tensors (patterns)")
    add(
        "--num_heads",
        type=positive,
        metavar="N",
        help="default: as config.json says, else of size 64",
    )
    add(
        "--vocab_size",
        type=positive,
        metavar="N",
        help="pieces (default: those of the vocabulary, else "
        "as config.json says, else all rows of the embeddings)",
    )
    add(
        "--layer_norm_epsilon",
        type=float,
        help="default: as config.json says, else 1e-5 for PLUG and 1e-12 for BERT",
    )


def _add_export_arguments(add: Callable) -> None:
    add("--checkpoint", required=True, metavar="DIR", help="a MODEL_DIR, or one step of it")
    add("--output", required=True, metavar="DIR", help="the directory to write")
    add("--dtype", choices=_DTYPES, help="dtype of all tensors (default: each as it was imported)")
    add(
        "--objective",
        action="append",
        default=[],
        metavar="MODULE.NAME",
        help="a custom objective whose head is to be written too, repeatable",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    status: int = args.run(args)
    return status


def _import_plug(args: argparse.Namespace) -> int:
    from plug_jax.convert.sources import open_plug

    return _import(args, open_plug)


def _import_hf(args: argparse.Namespace) -> int:
    from plug_jax.convert.sources import open_hf

    return _import(args, open_hf)


def _import(args: argparse.Namespace, open_source: Callable) -> int:
    from plug_jax.convert.from_torch import ImportOptions, import_weights
    from plug_jax.convert.model_sizes import ModelOptions

    started = time.monotonic()
    model = ModelOptions(
        num_heads=args.num_heads,
        vocab_size=args.vocab_size,
        layer_norm_epsilon=args.layer_norm_epsilon,
        encoder_final_norm_repeats=getattr(args, "encoder_final_norm_repeats", None),
        num_sentence_classes=getattr(args, "num_sentence_classes", None),
    )
    options = ImportOptions(
        model=model,
        vocabulary=args.vocabulary and os.path.expanduser(args.vocabulary),
        dtype=args.dtype,
        fresh=args.fresh,
        drop=args.drop,
    )
    source = open_source(_local(args.input))
    imported = import_weights(source, _local(args.output), options)
    _say_imported(args.output, imported, started)
    if not imported.has_vocabulary:
        print("it came without a vocabulary: commands that read text need one", file=sys.stderr)
    return 0


def _import_t5x(args: argparse.Namespace) -> int:
    from plug_jax.convert.from_t5x import import_t5x

    started = time.monotonic()
    imported = import_t5x(_local(args.input), _local(args.output))
    _say_imported(args.output, imported, started)
    return 0


def _say_imported(output: str, imported: Imported, started: float) -> None:
    config = imported.config
    print(
        f"{output}: {config.num_encoder_layers} + {config.num_decoder_layers} layers, hidden "
        f"{config.hidden_size}, {config.num_heads} heads of {config.head_dim}, "
        f"{config.vocab_size} pieces in {config.padded_vocab_size} rows"
    )
    _say_speed("imported", imported.tensors, imported.bytes, started)


def _export_plug(args: argparse.Namespace) -> int:
    from plug_jax.convert.to_torch import export_plug

    started = time.monotonic()
    exported = export_plug(
        args.checkpoint,
        _local(args.output),
        ranks=args.ranks,
        tag=args.tag,
        dtype=args.dtype,
        objectives=objectives_named(args.objective),
    )
    _say_speed("exported", exported.tensors, exported.bytes, started)
    return 0


def _export_hf(args: argparse.Namespace) -> int:
    from plug_jax.convert.to_torch import export_hf

    started = time.monotonic()
    exported = export_hf(
        args.checkpoint,
        _local(args.output),
        dtype=args.dtype,
        objectives=objectives_named(args.objective),
    )
    print(f"{args.output}: {exported.kind}")
    _say_speed("exported", exported.tensors, exported.bytes, started)
    return 0


def _local(text: str) -> Path:
    """A local path. PlugError for one in a bucket."""
    if re.match(r"\w+://", text):
        raise PlugError(
            f"{text} is not on this machine; only --checkpoint and --vocabulary may be elsewhere: "
            "copy it with your cloud's tool"
        )
    return Path(os.path.expanduser(text))


def _say_speed(done: str, tensors: int, size: int, started: float) -> None:
    seconds = time.monotonic() - started
    print(
        f"{done} {tensors} tensors, {size / 1e6:,.1f} MB in {seconds:.1f} s: "
        f"{size / 1e6 / seconds:,.1f} MB/s",
        file=sys.stderr,
    )


def _verify(args: argparse.Namespace) -> int:
    from plug_jax.convert.verify import verify

    if not 0 <= args.tolerance < math.inf:
        raise PlugError(f"--tolerance {args.tolerance}: it must be a number of 0 or more")
    comparison = verify(args.checkpoint, _local(args.golden), tolerance=args.tolerance)
    if args.json:
        print(
            json.dumps(
                {
                    "passed": comparison.passed,
                    "tolerance": comparison.tolerance,
                    "max_absolute_difference": {
                        name: str(d) if d is not None and not math.isfinite(d) else d
                        for name, d in comparison.differences.items()
                    },
                }
            )
        )
    else:
        for name, difference in comparison.differences.items():
            print(f"{name:16} {'not compared' if difference is None else f'{difference:.3g}'}")
        print("passed" if comparison.passed else f"FAILED: over {comparison.tolerance:g}")
    return 0 if comparison.passed else 1
