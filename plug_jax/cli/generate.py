"""`plug-jax generate`: continue a text, a terminal's, or each line of standard input."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from plug_jax.cli import gin_config
from plug_jax.cli.arguments import options_of
from plug_jax.config import ComputeDtype
from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields
from plug_jax.inference.request_options import GenerationOptions

if TYPE_CHECKING:
    from plug_jax.inference.generator import GeneratedText
    from plug_jax.inference.model import InferenceModel
    from plug_jax.partitioning import Partitioner

SUMMARY = "Continue a text with a stage-2 checkpoint."
EXAMPLE = """examples:
  plug-jax generate --checkpoint /path/to/model_dir --prompt '今天天气' --num_samples 3
  plug-jax generate --checkpoint /path/to/model_dir            # asks for prompts; texts stream
  plug-jax generate --checkpoint /path/to/model_dir --num_beams 4 < prompts.txt > texts.txt
  plug-jax generate --checkpoint /path/to/model_dir --prompt '第一章' --long --max_new_tokens 2000

Each line of standard input is a prompt; its texts are lines of standard output. Information
about them (speed; log-probabilities with --verbose) goes to standard error.
"""
UNKNOWN_ARGUMENTS = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """The settings of runs/generate.gin and the options."""

    checkpoint: str
    prompt: str | None  # None: from standard input
    options: GenerationOptions
    long: bool = False  # the released scheme for long texts
    partitioner: Partitioner | None = None  # from a mesh/ file; None: the first device
    dtype: ComputeDtype | None = None  # None: the training dtype
    int8: bool = False  # 8-bit weights

    def __post_init__(self) -> None:
        from plug_jax.partitioning import Partitioner

        check_fields(self, {"Partitioner": Partitioner})


# Each option sets the macro of its name in the gin file, which has the defaults.
_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "checkpoint": (str, "checkpoint directory (a run's MODEL_DIR, or one step)"),
    "prompt": (str, "the text to continue; without it, prompts are read from standard input"),
    **options_of(GenerationOptions),
}
_MACROS = {"seed": "RANDOM_SEED"}
_LONG = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")  # the options of --long
_SWITCHES = {
    "long": "re-encode every 128 tokens, as the released PLUG does, for texts of any length",
    "int8": "quantise the weights to 8 bits",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax generate`."""
    for name, (kind, text) in _OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, help=text)
    for name, text in _SWITCHES.items():
        parser.add_argument(f"--{name}", action="store_true", default=None, help=text)
    parser.add_argument(
        "--verbose", action="store_true", help="print the log-probability of each text"
    )
    gin_config.add_arguments(parser, default="runs/generate.gin")


def run(args: argparse.Namespace) -> int:
    """Print each text to stdout and the speed to stderr."""
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    from plug_jax.inference.model import InferenceModel

    given = {_MACROS.get(n, n.upper()): getattr(args, n) for n in (*_OPTIONS, *_SWITCHES)}
    bindings = [f"{macro} = {value!r}" for macro, value in given.items() if value is not None]
    request = gin_config.configured(
        GenerateConfig,
        files=args.gin_file,
        bindings=[*bindings, *gin_config.overrides(args.unknown)],
    )
    if request.long:
        _check_long(request.options, verbose=args.verbose)
    model = InferenceModel.load(
        request.checkpoint, request.partitioner, request.dtype, int8=request.int8
    )
    asks = request.prompt is None and sys.stdin.isatty()
    for prompt in _prompts(request.prompt, asks=asks):
        try:
            _answer(model, prompt, request, verbose=args.verbose)
        except PlugError as error:
            if not asks:
                raise
            print(error, file=sys.stderr)
        except KeyboardInterrupt:
            if not asks:
                raise
            print(" (interrupted)", file=sys.stderr)
    return 0


def _check_long(options: GenerationOptions, *, verbose: bool) -> None:
    """PlugError for options that long texts do not have."""
    default = dataclasses.asdict(GenerationOptions())
    changed = {name for name, value in default.items() if getattr(options, name) != value}
    if verbose:
        changed.add("verbose")
    if ignored := sorted(changed - set(_LONG)):
        raise PlugError(f"--long has no {', '.join(ignored)}; it has {', '.join(_LONG)}")


def _prompts(prompt: str | None, *, asks: bool) -> Iterator[str]:
    if prompt is not None:
        yield prompt
    elif not asks:
        for number, line in enumerate(sys.stdin.buffer, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise PlugError(f"standard input, line {number} is not UTF-8") from error
            yield text.rstrip("\r\n")
    else:
        print("One prompt per line; Ctrl-D ends.", file=sys.stderr)
        while True:
            try:
                yield input("> ")
            except EOFError:
                print(file=sys.stderr)
                return
            except UnicodeDecodeError as error:
                print(f"this is not {error.encoding}: {error}", file=sys.stderr)


def _answer(model: InferenceModel, prompt: str, request: GenerateConfig, *, verbose: bool) -> None:
    """Print the texts of one prompt; a single sampled text is streamed."""
    from plug_jax.inference.generator import generate, generate_long, stream

    options = request.options
    started = time.monotonic()
    texts: list[GeneratedText] = []
    if request.long:
        print(*generate_long(model, [prompt], options))
        return
    if options.num_samples == 1 and options.num_beams == 1:
        texts = [_print_growing(stream(model, prompt, options))]
    else:
        (texts,) = generate(model, [prompt], options)
        for text in texts:
            print(text.text)
    seconds = time.monotonic() - started
    tokens = sum(len(text.ids) for text in texts)
    speed = f"{tokens} tokens in {seconds:.1f} s: {tokens / seconds:.1f} tokens/s"
    print(f"{speed}, compilation included", file=sys.stderr)
    if verbose:
        for text in texts:
            what = f"log-probability {text.log_prob:.3f}, score {text.score:.3f}"
            print(f"{what}, {len(text.ids)} tokens, {text.finish_reason}", file=sys.stderr)


def _print_growing(texts: Iterable[GeneratedText]) -> GeneratedText:
    """Print what each text adds to the previous one; returns the last."""
    shown, text = "", None
    for text in texts:
        # The bytes of a character may arrive one by one: wait for all of them.
        whole = text.text.rstrip("\N{REPLACEMENT CHARACTER}")
        if whole.startswith(shown):
            print(whole[len(shown) :], end="", flush=True)
            shown = whole
    assert text is not None
    rest = text.text[len(shown) :] if text.text.startswith(shown) else "\n" + text.text
    print(rest)
    return text
