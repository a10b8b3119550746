"""What is claimed, and the runs that test it.

An arm is a gin file of claims/gin, trained once a seed; it may start from another arm's checkpoint
of the same seed. A claim compares arms by what they score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

LENGTHS = (8, 16, 32, 64, 128)  # that texts of both sides are cut to for claim d


@dataclasses.dataclass(frozen=True)
class Arm:
    """A run of each seed."""

    gin: str  # claims/gin/NAME.gin
    start: str | None = None  # the arm whose model it begins with
    bindings: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # macros, in gin's spelling
    fine_tuned: bool = False  # on reviews: its best checkpoint is scored on the test split too


@dataclasses.dataclass(frozen=True)
class Members:
    """Several fine-tuned arms of a seed, scored on the test split.

    "mean": as one model, the mean of their probabilities; "best": the one that is best on dev.
    """

    arms: tuple[str, ...]
    taken: Literal["mean", "best"]


@dataclasses.dataclass(frozen=True)
class ByLength:
    """An arm of stage 2, its perplexity on texts of each of LENGTHS."""

    arm: str


@dataclasses.dataclass(frozen=True)
class Quantity:
    """What arms are compared by."""

    name: str
    metric: str  # of their scores
    less_is_better: bool = False
    percent: bool = False  # given as a share, shown in percent
    at: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # the arm that scored it, by arm

    def scored_by(self, arm: str) -> str:
        """The run whose scores hold it for an arm of the claim."""
        return self.at.get(arm, arm)


@dataclasses.dataclass(frozen=True)
class Claim:
    """Arms side by side; the first is PLUG's own way, with which each other one is compared."""

    title: str
    arms: Mapping[str, str]  # what the figure calls them, by name
    quantities: Sequence[Quantity]

    @property
    def runs(self) -> list[str]:
        """What has to be scored for it."""
        names = (one.scored_by(arm) for one in self.quantities for arm in self.arms)
        return list(dict.fromkeys(names))


PERPLEXITY = Quantity("decoder perplexity", "decoder_perplexity", less_is_better=True)

_MEMBERS = {
    f"reviews_{number}": {"LEARNING_RATE": rate, "DROPOUT_RATE": dropout}
    for number, (rate, dropout) in enumerate(
        [("1e-3", "0.0"), ("4e-3", "0.0"), ("2e-3", "0.2"), ("2e-3", "0.0")]
    )
}

ARMS: Mapping[str, Arm | Members | ByLength] = {
    "structbert": Arm("structbert"),
    "masked_lm": Arm("masked_lm"),
    "plugged": Arm("plugged", start="structbert"),
    "scratch": Arm("scratch"),
    "scratch_as_plugged": Arm("scratch_as_plugged"),
    "masked_lm_kept": Arm("masked_lm_kept", start="structbert"),
    "no_masked_lm": Arm("no_masked_lm", start="structbert"),
    "decoder_alone": Arm("decoder_alone"),
    "fixed_lengths": Arm("fixed_lengths", start="structbert"),
    **{f"by_length_{arm}": ByLength(arm) for arm in ("plugged", "fixed_lengths")},
    **{f"probe_{arm}": Arm("probe", start=arm, fine_tuned=True)
       for arm in ("plugged", "masked_lm_kept", "no_masked_lm")},
    **{f"order_{arm}": Arm("sentence_order", start=arm) for arm in ("structbert", "masked_lm")},
    "reviews_masked_lm": Arm("reviews", start="masked_lm", fine_tuned=True),
    **{name: Arm("reviews", start="structbert", bindings=bindings, fine_tuned=True)
       for name, bindings in _MEMBERS.items()},
    "ensemble": Members(tuple(_MEMBERS), "mean"),
    "best_member": Members(tuple(_MEMBERS), "best"),
}  # fmt: skip

# In the order in which they are tested.
CLAIMS: Mapping[str, Claim] = {
    "b": Claim(
        "A decoder plugged onto a trained encoder, against both from scratch",
        {
            "plugged": "plugged on",
            "scratch": "from scratch, as many tokens",
            "scratch_as_plugged": "from scratch, stage 2 alone",
        },
        [PERPLEXITY, Quantity("masked LM accuracy", "mlm_accuracy", percent=True)],
    ),
    "c": Claim(
        "Masked LM dropped for the last tenth of stage 2",
        {
            "plugged": "dropped for the last 10%",
            "masked_lm_kept": "kept to the end",
            "no_masked_lm": "never there",
        },
        [
            PERPLEXITY,
            Quantity("masked LM accuracy", "mlm_accuracy", percent=True),
            Quantity(
                "reviews told apart by a probe",
                "accuracy",
                at={arm: f"probe_{arm}" for arm in ("plugged", "masked_lm_kept", "no_masked_lm")},
            ),
        ],
    ),
    "a": Claim(
        "StructBERT's word and sentence objectives beside masked LM",
        {"structbert": "with both", "masked_lm": "masked LM alone"},
        [
            Quantity(
                "reviews told apart",
                "accuracy",
                at={"structbert": "reviews_3", "masked_lm": "reviews_masked_lm"},
            ),
            Quantity(
                "sentence order told",
                "sentence_accuracy",
                percent=True,
                at={"structbert": "order_structbert", "masked_lm": "order_masked_lm"},
            ),
            Quantity("masked LM accuracy", "mlm_accuracy", percent=True),
        ],
    ),
    "e": Claim(
        "Encoder and decoder, against a decoder alone in GPT-3's manner",
        {
            "scratch": "encoder and decoder",
            "plugged": "the same, plugged on",
            "decoder_alone": "a decoder alone",
        },
        [PERPLEXITY, Quantity("next characters guessed", "decoder_accuracy", percent=True)],
    ),
    "d": Claim(
        "Lengths drawn from a range, against the longest alone",
        {"plugged": "drawn from 8 to 128", "fixed_lengths": "always 128"},
        [
            Quantity(
                f"perplexity at {length}",
                f"perplexity_at_{length}",
                less_is_better=True,
                at={arm: f"by_length_{arm}" for arm in ("plugged", "fixed_lengths")},
            )
            for length in LENGTHS
        ],
    ),
    "f": Claim(
        "An ensemble over hyperparameters, against its best member",
        {
            "ensemble": "all four together",
            "best_member": "the best one on dev",
            **{
                name: "learning rate {LEARNING_RATE}, dropout {DROPOUT_RATE}".format(**bindings)
                for name, bindings in _MEMBERS.items()
            },
        },
        [Quantity("reviews told apart", "accuracy")],
    ),
}
