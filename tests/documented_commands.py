"""The `plug-jax` commands in the documentation, and a directory in which they can run."""

from __future__ import annotations

import dataclasses
import importlib
import json
import random
import re
import shlex
import shutil
from pathlib import Path

from plug_jax.cli.main import COMMANDS
from plug_jax.clue.submission import FILE_NAMES, VERSIONS, predictions_file, write_submission
from plug_jax.clue.tasks import CLUE
from plug_jax.data.vocabularies.vocabulary import SPECIAL_PIECES
from plug_jax.downstream.text_format import TextFormat
from tests.clue import official
from tests.downstream.tiny_encoder import write_fine_tuned

ROOT = Path(__file__).resolve().parents[1]

# Where the documentation's files are, and a test's: in the current directory.
_PLACES = re.compile("/path/to/|/data/|gs://BUCKET/|gs://bucket/")
_BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`(plug-jax \w[^`]* -[^`]*)`")
_SETTING = re.compile(r"`--gin\.([\w./]+)=([^`]+)`")
_COMMENT = re.compile(r"^#(.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Command:
    """One command line: arguments after `plug-jax`, and the file of its standard input."""

    where: str
    arguments: tuple[str, ...]
    stdin: str | None = None

    @property
    def name(self) -> str:
        return self.arguments[0]

    def __str__(self) -> str:
        return f"{self.where}: {shlex.join(self.arguments)}"

    @property
    def options(self) -> tuple[str, ...]:
        """Everything except the values of its options; gin files are included."""
        names = (a if a.startswith("--gin_file") else a.partition("=")[0] for a in self.arguments)
        verbs = 2 if self.name in ("convert", "bench", "clue", "checkpoint") else 1
        return (
            *self.arguments[:verbs],
            str(self.stdin),
            *sorted(name for name in names if name.startswith("-")),
        )

    def with_settings(self, **settings: str) -> list[str]:
        """The arguments with macros set to these values, replacing or added to its own."""
        given = {f"--gin.{name}": value for name, value in settings.items()}
        kept = [a for a in self.arguments if a.partition("=")[0] not in given]
        return [*kept, *(f"{name}={value}" for name, value in given.items())]


def documented() -> list[Command]:
    """Every command in README.md, docs/, the comments of gin files and --help, once."""
    found: dict[tuple[str, ...], Command] = {}
    for where, text in _texts():
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            if re.search(r"(^|\s)plug-jax \w", line):
                command = _parse(where, line)
                found.setdefault(command.arguments, command)
    return list(found.values())


def settings_of(page: str) -> list[str]:
    """The gin settings that a page names in its text, as bindings."""
    text = _BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    found = _SETTING.findall(text)
    return ["{} = {}".format(name, value.strip('"')) for name, value in found]


def _pages() -> list[Path]:
    """All hand-written pages except tutorials, which `make docs` executes."""
    pages = sorted((ROOT / "docs").rglob("*.md"))
    return [
        ROOT / "README.md",
        *(page for page in pages if {"_build", "tutorials"}.isdisjoint(page.parts)),
    ]


def _texts() -> list[tuple[str, str]]:
    texts = []
    for path in _pages():
        page = path.read_text(encoding="utf-8")
        inline = [" ".join(code.split()) for code in _INLINE.findall(_BLOCK.sub("", page))]
        texts.append((path.name, "\n".join([*_BLOCK.findall(page), *inline])))
    for path in sorted((ROOT / "gin_configs").rglob("*.gin")):
        lines = _COMMENT.findall(path.read_text(encoding="utf-8"))
        texts.append((path.name, "\n".join(lines)))
    for name, module in COMMANDS.items():
        texts.append((f"{name} --help", importlib.import_module(module).EXAMPLE))
    return texts


def _parse(where: str, line: str) -> Command:
    line = _PLACES.sub("", line[line.index("plug-jax ") :])
    if line.count('"') % 2:  # it was quoted within another command
        line = line.rstrip().removesuffix('"')
    words = shlex.split(line, comments=True)[1:]
    stdin = None
    if "<" in words:
        stdin = words[words.index("<") + 1]
        words = words[: words.index("<")]
    if "..." in words:
        place = words.index("...")
        words[place : place + 1] = [
            a
            for a in _LEFT_OUT
            if a.split("=")[0] != "--gin_file"
            or not any(f"/{a.split('/')[0][11:]}" in w for w in words)
        ]
    return Command(where, tuple(words), stdin)


# "..." stands for the command of stage 1 in docs/pretraining.md.
_LEFT_OUT = (
    "--gin_file=runs/structbert_pretrain.gin",
    "--gin_file=models/tiny.gin",
    "--gin_file=mesh/cpu8.gin",
    "--gin.MODEL_DIR='run1'",
    "--gin.TRAIN_STEPS=1000",
    "--gin.BATCH_SIZE=16",
    "--gin.TRAIN_FILES='news/*.txt'",
    "--gin.VALIDATION_FILES='held_out.txt'",
    "--gin.VOCABULARY='vocabulary'",
    "--gin.VOCAB_SIZE=8000",
)

_MY_TASKS = """
from plug_jax.data.sources.text_source import TextSource
from plug_jax.data.vocabularies.vocabulary import load_vocabulary
from plug_jax.tasks.pretrain import add_structbert
source = TextSource(train="news/*.txt", validation="held_out.txt")
add_structbert("my_task", source, load_vocabulary("vocabulary"), max_length=64)
"""


_QUESTION = {"id": 0, "answer": "天", "context": "天地", "question": "人间？"}


def prepare(directory: Path) -> None:
    """Write the small files that the commands name. Models are left to the caller."""
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 8200)]
    rng = random.Random(0)
    rng.shuffle(characters)

    def text(first: int) -> str:
        """Documents, one per line, with sentences of 20 characters, from number `first` on."""
        sentences = ["".join(characters[i : i + 19]) + "。" for i in range(first, 8200, 19)]
        return "".join("".join(sentences[i : i + 9]) + "\n" for i in range(0, len(sentences), 9))

    news = text(0) * 2
    small = text(7000)
    for name, content in {
        "news/a.txt": news,
        "corpus/a.txt": news,
        "train-0.txt": small,
        "text/train-0.txt.gz": "",
        "held_out.txt": small,
        "validation.txt": small,
        "text/validation.txt": small,
        "test.txt": small,
        "my_text.txt": small,
        "prompts.txt": "天地\n人间\n",
        "labels.txt": "体育\n财经\t经济\n",
        "prompts/a.jsonl": _rows({"prompt": "天地"}, {"prompt": "人间"}),
        "pairs.jsonl": _rows({"prompt": "天地", "target": ["人", "马"]}),
        "texts.jsonl": _rows({"id": 0, "generated": [{"text": "人"}], "references": ["天地人"]}),
        "references.tsv": "target\n天地人\n",
        "DuReaderQG/train.json": _rows(_QUESTION),
        "DuReaderQG/dev.json": _rows(_QUESTION),
        "questions.tsv": "answer\tcontext\tquestion\n天\t天地\t人间？\n",
        "masked.jsonl": _rows({"text": "天[MASK]人间"}),
        "rows.jsonl": _rows({"text": "天地", "label": "体育"}),
        "my_package/my_tasks.py": _MY_TASKS,
        "demo_output/corpus/train.txt": small.replace("\n", "\n\n"),
        "demo_output/corpus/validation.txt": small.replace("\n", "\n\n"),
    }.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    _write_clue(directory)
    _write_own_task(directory)
    pieces = [*SPECIAL_PIECES, *characters][:8000]
    for name in ("vocabulary", "demo_output/vocabulary"):
        (directory / name).mkdir()
        (directory / name / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    page = (ROOT / "docs" / "tpu.md").read_text(encoding="utf-8")
    (stage2,) = (block for block in _BLOCK.findall(page) if "include 'runs/palm" in block)
    (directory / "stage2.gin").write_text(_PLACES.sub("", stage2), encoding="utf-8")


def _write_own_task(directory: Path) -> None:
    """The example of docs/finetuning.md: its task's files, and the gin file."""
    blocks = _BLOCK.findall((ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8"))
    table = next(block for block in blocks if block.startswith("text\tlabel"))
    for path in ("reviews/train.tsv", "reviews/dev.tsv", "reviews/test.tsv"):
        (directory / path).parent.mkdir(exist_ok=True)
        (directory / path).write_text(table, encoding="utf-8")
    own = next(block for block in blocks if "TRAIN_FILE = 'reviews" in block)
    (directory / "reviews.gin").write_text(own, encoding="utf-8")
    for name in ("train", "dev"):
        path = directory / "demo_output" / "finetune" / "reviews" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("id\tlabel\ttext\n1\tneg\t天地\n2\tpos\t人间\n", encoding="utf-8")
    (directory / "similar").mkdir()
    rows = "first,second,score\n天地,人间,1.5\n天地,天地,5\n"
    for name in ("train", "dev"):
        (directory / "similar" / f"{name}.csv").write_text(rows, encoding="utf-8")


def _write_clue(directory: Path) -> None:
    """CLUE's files, predictions for the dev files, and a submission."""
    data = official.write_clue(directory / "CLUE")
    for name in ("afqmc", "tnews", "cmrc2018"):
        task = CLUE[name]
        records = task.read(data, "dev").records
        values = official.constant_predictions(task, records)
        (directory / FILE_NAMES[name]).write_bytes(predictions_file(task, records, values))
    shutil.copy(directory / FILE_NAMES["cmrc2018"], directory / "dev_predictions.json")
    tests = {name: CLUE[name].read(data, "test").records for name in VERSIONS["1.1"]}
    values = {name: official.constant_predictions(CLUE[name], tests[name]) for name in tests}
    write_submission(values, data, "1.1", directory / "submit_team_20260101.zip")


def give_models(directory: Path, stage1: Path, stage2: Path) -> None:
    """Copies of two MODEL_DIRs under all the names that the commands have for theirs.

    And models that were fine-tuned.
    """
    names = {"run1": stage1, "stage1": stage1, "demo_output/stage1": stage1}
    names |= dict.fromkeys(
        ("run2", "run", "model_dir", "stage2", "tuned", "demo_output/stage2"), stage2
    )
    for name, source in names.items():
        if not (directory / name).exists():
            shutil.copytree(source, directory / name)
    for name in ("tnews", "afqmc"):
        format = TextFormat(max_length=32, labels=CLUE[name].labels)
        write_fine_tuned(directory / "finetuned" / name, f"clue_{name}", format)
    own = TextFormat(max_length=128, labels=("bad", "good"))
    write_fine_tuned(directory / "reviews_run", "classification", own)


def _rows(*rows: dict[str, object]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
