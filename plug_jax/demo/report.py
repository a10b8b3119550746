"""The report of `plug-jax demo`: report.md for people, summary.json for programs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plug_jax import strict_json
from plug_jax.atomic_files import write_whole

if TYPE_CHECKING:
    from plug_jax.demo.baselines import Baselines
    from plug_jax.demo.text_quality import TextQuality


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything in the report."""

    stage1: dict[str, float]
    stage2: dict[str, float]
    perplexity_before_last_phase: float
    baselines: Baselines
    ngrams: dict[int, float]  # perplexities by order
    texts: dict[str, str]
    quality: dict[str, TextQuality]  # of continuations, by author
    seconds: dict[str, float]
    config: dict[str, Any]


def write_results(output: Path, results: Results) -> None:
    """Write both to the directory, and print the report."""
    held_out = {
        **results.stage1,  # sentence and word order are only measured in stage 1
        **results.stage2,
        "decoder_perplexity_before_last_phase": results.perplexity_before_last_phase,
        "decoder_perplexity_after_last_phase": results.stage2["decoder_perplexity"],
    }
    summary = {
        "held_out": held_out,
        "held_out_stage1": results.stage1,
        "held_out_stage2": results.stage2,
        "baseline": {
            **dataclasses.asdict(results.baselines),
            "ngram_perplexity": {str(order): value for order, value in results.ngrams.items()},
        },
        "quality": {who: dataclasses.asdict(one) for who, one in results.quality.items()},
        "generated": results.texts,
        "seconds": {**results.seconds, "total": round(sum(results.seconds.values()), 1)},
        "config": results.config,
    }
    text = strict_json.dumps(summary, indent=2, ensure_ascii=False, default=str)
    write_whole(output / "summary.json", text + "\n")
    base = results.baselines
    by_counting = " / ".join(f"{value:.4g}" for value in results.ngrams.values())
    orders = f"Kneser-Ney, {min(results.ngrams)} to {max(results.ngrams)} characters"
    rows = [
        ("decoder perplexity", "decoder_perplexity", f"{by_counting} ({orders})"),
        (
            "masked LM accuracy",
            "mlm_accuracy",
            f"{base.most_frequent_token_accuracy:.4g} (most frequent)",
        ),
        ("sentence accuracy", "sentence_accuracy", f"{base.sentence_chance:.4g} (chance)"),
        ("word-order accuracy", "word_order_accuracy", ""),
    ]
    report = _REPORT.format(
        table="\n".join(f"| {name} | {held_out[key]:.4g} | {other} |" for name, key, other in rows),
        before=held_out["decoder_perplexity_before_last_phase"],
        after=held_out["decoder_perplexity_after_last_phase"],
        quality="\n".join(
            f"| {who} | {one.ngram_perplexity:.4g} | {one.distinct_2:.3f} |"
            for who, one in results.quality.items()
        ),
        order=max(results.ngrams),
        generated="\n".join(
            f"- {prompt} {f'**{text}**' if text else '(ended at once)'}"
            for prompt, text in results.texts.items()
        ),
        times=", ".join(f"{name} {value:.0f} s" for name, value in summary["seconds"].items()),
    )
    write_whole(output / "report.md", report)
    print(report)


_REPORT = """# PLUG in small: both stages on the People's Daily of January 1998

| held-out articles | model | count-based baseline |
|---|---|---|
{table}

Masked LM and the decoder are measured at the end of stage 2, the sentence objective and shuffled
positions at the end of stage 1. Decoder perplexity was {before:.1f} when masked LM was dropped, 90%
through stage 2, and {after:.1f} at the end. The n-grams are counted on the same training text.

![learning](learning.png)

![losses](losses.png)

Windows of random length, the first part for the encoder, the rest for the decoder:

![lengths](lengths.png)

Prompts and **continuations**:

{generated}

Continuations of held-out texts: {order}-gram perplexity and the share of distinct pairs:

| written by | perplexity | distinct-2 |
|---|---|---|
{quality}

Time: {times}.
"""
