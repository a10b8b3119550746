"""Hand-made examples whose rates can be counted by hand."""

from pathlib import Path

import numpy as np

from plug_jax.data.vocabularies.vocabulary import WordPieceVocabulary

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"天地人你我，。", "play", "##ing", "well"]

# Everything at once: a shuffled window, and a masked, a kept, a replaced and a plain token.
STAGE1 = [
    {
        "encoder_original_tokens": "[CLS] 天 地 人 [SEP] 你 我 play ##ing well [SEP]",
        "encoder_input_tokens": "[CLS] 人 天 地 [SEP] [MASK] 我 well ##ing [MASK] [SEP]",
        "encoder_loss_weights": [0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 0],
        "encoder_shuffled": [0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
        "encoder_token_types": [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1],
        "sentence_labels": [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        "sentence_weights": [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    },
    {
        "encoder_original_tokens": "[CLS] 天 [UNK] [SEP] 地 [SEP]",
        "encoder_input_tokens": "[CLS] 天 [UNK] [SEP] 地 [SEP]",
        "encoder_loss_weights": [0, 0, 0, 0, 0, 0],
        "encoder_shuffled": [0, 0, 0, 0, 0, 0],
        "encoder_token_types": [0, 0, 0, 0, 1, 1],
        "sentence_labels": [0, 0, 0, 0, 0, 0],
        "sentence_weights": [1, 0, 0, 0, 0, 0],
    },
]
STAGE2 = [
    {
        "encoder_original_tokens": "[CLS] 天 地 [SEP]",
        "encoder_input_tokens": "[CLS] 天 [MASK] [SEP]",
        "encoder_loss_weights": [0, 0, 1, 0],
        "encoder_token_types": [0, 0, 0, 0],
        "decoder_input_tokens": "[CLS] 人 你 我",
        "decoder_target_tokens": "人 你 我 [SEP]",
        "decoder_loss_weights": [1, 1, 1, 1],
    },
    {
        "encoder_original_tokens": "[CLS] 我 [SEP]",
        "encoder_input_tokens": "[CLS] 我 [SEP]",
        "encoder_loss_weights": [0, 0, 0],
        "encoder_token_types": [0, 0, 0],
        "decoder_input_tokens": "[CLS] 天 地",  # not shifted by one to its targets
        "decoder_target_tokens": "人 你 [SEP]",
        "decoder_loss_weights": [0, 1, 1],
    },
]


def to_ids(example: dict) -> dict[str, np.ndarray]:
    """Pieces by name to their ids."""
    return {
        name: np.array(
            [PIECES.index(piece) for piece in value.split()] if isinstance(value, str) else value,
            np.int32,
        )
        for name, value in example.items()
    }


def make_vocabulary(directory: Path) -> WordPieceVocabulary:
    """The vocabulary of the pieces, in a file of the directory."""
    file = directory / "vocab.txt"
    file.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return WordPieceVocabulary(file)
