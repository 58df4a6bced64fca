"""BERT (KcBERT) classifiers of texts: pretrained by name or folder, or the same architecture, smaller and from scratch.

Belongs here: how the network is made, frozen, trained on a batch and exported. Does not belong here: data, the run (`trainer.py`), what
labels mean.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.settings import SettingsError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import nn

    from mlops_assets.training.config import BertSection, TextTrainingSection
    from mlops_assets.training.trainer import Recipe

#: Hidden words are guessed in a multiple of this many.
GUESS_STEP = 32


def network(
    section: BertSection, labels: Sequence[str], texts: Sequence[str], max_length: int, parent: Path | None
) -> tuple[Any, Tokenizer]:
    """The network and its tokenizer: the champion's weights (`parent`), pretrained ones, or new ones on a given vocabulary or one that is
    learned from `texts`."""
    from mlops_assets.training import text

    if source := str(parent) if parent else section.pretrained:
        return pretrained(source, labels, max_length)
    if section.vocabulary:
        tokenizer = text.read_vocabulary(Path(section.vocabulary))
    else:
        tokenizer = text.learn_tokenizer(texts, section.vocabulary_size)
    return from_scratch(section, labels, tokenizer, max_length), tokenizer


def from_scratch(section: BertSection, labels: Sequence[str], tokenizer: Tokenizer, max_length: int) -> nn.Module:
    """A BERT classifier of the section's size with random weights (seed torch before)."""
    from transformers import BertConfig, BertForSequenceClassification

    if section.hidden_size % section.attention_heads:
        raise SettingsError(
            f"hidden_size {section.hidden_size} is not a multiple of attention_heads {section.attention_heads}: change one of them."
        )
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=section.hidden_size,
        num_hidden_layers=section.layers,
        num_attention_heads=section.attention_heads,
        intermediate_size=section.intermediate_size,
        initializer_range=section.initializer_range,
        hidden_dropout_prob=section.dropout,
        attention_probs_dropout_prob=section.dropout,
        max_position_embeddings=max_length,
        pad_token_id=tokenizer.token_to_id("[PAD]"),
        **_label_names(labels),
    )
    net: nn.Module = BertForSequenceClassification(config)
    return net


def pretrained(name: str, labels: Sequence[str], max_length: int) -> tuple[nn.Module, Tokenizer]:
    """A classifier and its tokenizer from the hub or a local folder. A classifier's head is kept when it has our labels, else it is new.

    Raises:
        SettingsError: not there, not readable, or too short for `max_length`.
    """
    from transformers import AutoModelForSequenceClassification

    try:
        net = AutoModelForSequenceClassification.from_pretrained(name, ignore_mismatched_sizes=True, **_label_names(labels))
        tokenizer = _tokenizer(name)
    except (OSError, ValueError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        raise SettingsError(
            f"the pretrained model {name!r} could not be loaded ({first}). Check the name and the network, give a local folder "
            "with config.json, weights and tokenizer in `pretrained`, or set it to null to train from scratch."
        ) from error
    positions = getattr(net.config, "max_position_embeddings", max_length)
    if max_length > positions:
        raise SettingsError(f"max_length {max_length} is more than the {positions} positions of {name!r}: lower max_length.")
    if len(vocabulary := tokenizer.get_vocab()) > net.config.vocab_size:
        raise SettingsError(
            f"the tokenizer of {name!r} has {len(vocabulary)} tokens, its model {net.config.vocab_size}: they do not belong together."
        )
    return net, tokenizer


def _label_names(labels: Sequence[str]) -> dict[str, Any]:
    return {"num_labels": len(labels), "id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def _tokenizer(name: str) -> Tokenizer:
    from tokenizers import Tokenizer

    own = Path(name) / "tokenizer.json"
    if own.is_file():
        return Tokenizer.from_file(str(own))
    from transformers import AutoTokenizer

    # The fast tokenizer is a wrapper; the bundle holds what is inside.
    return AutoTokenizer.from_pretrained(name).backend_tokenizer


def freeze(net: Any, unfrozen_layers: int | None) -> None:
    """Let only the last `unfrozen_layers` encoder layers and the head train; None lets everything train."""
    if unfrozen_layers is None:
        return
    layers = net.base_model.encoder.layer
    if not 0 <= unfrozen_layers <= len(layers):
        raise SettingsError(
            f"unfrozen_layers {unfrozen_layers}: the model has {len(layers)} layers, give 0 to {len(layers)} or null for all."
        )
    frozen = [net.base_model.embeddings, *layers[: len(layers) - unfrozen_layers]] if unfrozen_layers < len(layers) else []
    for module in frozen:
        for parameter in module.parameters():
            parameter.requires_grad_(False)


def trainable(net: nn.Module, section: BertSection, tokenizer: Tokenizer, *, multi_label: bool = False) -> nn.Module:
    """`net` as `trainer.py` wants it: a batch in, `loss` and `logits` out.

    Args:
        multi_label: labels are [rows, classes] of 0 and 1, each for itself; else [rows], one class each.
    """
    freeze(net, section.unfrozen_layers)
    wrapped: nn.Module = _classifier_class()(
        net,
        multi_label=multi_label,
        label_smoothing=section.training.label_smoothing,
        word_dropout=section.word_dropout,
        guess_weight=section.guess_weight,
        mask_id=tokenizer.token_to_id("[MASK]"),
        special_ids=[tokenizer.token_to_id(token) for token in ("[PAD]", "[CLS]", "[SEP]")],
    )
    return wrapped


@functools.cache
def _classifier_class() -> type[Any]:
    """Defined on first use: loading definitions must not import torch."""
    import torch
    from torch import Tensor, nn
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    class Classifier(nn.Module):
        """A sequence classifier that, while it trains, hides words, and may have to guess them as well.

        Words are hidden here and not in the data set: here they come from the random state that checkpoints restore.
        """

        def __init__(
            self,
            net: Any,
            *,
            multi_label: bool,
            label_smoothing: float,
            word_dropout: float,
            guess_weight: float,
            mask_id: int | None,
            special_ids: list[int],
        ) -> None:
            super().__init__()
            self.net, self.multi_label, self.label_smoothing, self.word_dropout = net, multi_label, label_smoothing, word_dropout
            self.guess_weight = guess_weight if word_dropout else 0.0
            if word_dropout and mask_id is None:
                raise SettingsError("word_dropout needs a tokenizer with [MASK]: set word_dropout to 0.")
            self.mask_id = mask_id or 0
            self.special: Tensor
            self.register_buffer("special", torch.tensor([i for i in special_ids if i is not None]), persistent=False)
            if self.guess_weight:
                size = net.config.hidden_size
                self.guess = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.LayerNorm(size))
                self.guess_bias = nn.Parameter(torch.zeros(net.config.vocab_size))

        def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            if labels is None:
                return {"logits": self.net(input_ids=input_ids, attention_mask=attention_mask).logits}
            shown, hidden_places = self._hide(input_ids)
            outputs = self.net(input_ids=shown, attention_mask=attention_mask, output_hidden_states=bool(self.guess_weight))
            loss = self._loss(outputs.logits.float(), labels)
            if self.guess_weight and hidden_places is not None:
                loss = loss + self.guess_weight * self._guess(outputs.hidden_states[-1], input_ids, hidden_places)
            return {"loss": loss, "logits": outputs.logits}

        def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
            if not self.multi_label:
                return cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
            return binary_cross_entropy_with_logits(logits, labels * (1 - self.label_smoothing) + self.label_smoothing / 2)

        def _guess(self, states: Tensor, input_ids: Tensor, places: Tensor) -> Tensor:
            """The loss of guessing the hidden words. All but the last few of them: kernels are made, and kept, for each number of rows."""
            chosen = places.flatten().nonzero()[:, 0]
            chosen = chosen[: len(chosen) // GUESS_STEP * GUESS_STEP or len(chosen)]
            if not len(chosen):
                return states.new_zeros(())
            words = self.net.get_input_embeddings().weight
            guesses = nn.functional.linear(self.guess(states.flatten(0, 1)[chosen]), words, self.guess_bias)
            return cross_entropy(guesses.float(), input_ids.flatten()[chosen])

        def _hide(self, input_ids: Tensor) -> tuple[Tensor, Tensor | None]:
            """The ids with a random share of the words replaced by [MASK], and where."""
            if not (self.training and self.word_dropout):
                return input_ids, None
            places = torch.rand(input_ids.shape, device=input_ids.device) < self.word_dropout
            places &= ~torch.isin(input_ids, self.special)
            return input_ids.masked_fill(places, self.mask_id), places

    return Classifier


def recipe(section: TextTrainingSection) -> Recipe:
    from mlops_assets.training.trainer import Recipe

    return Recipe(**{name: getattr(section, name) for name in type(section).model_fields if name != "label_smoothing"})


def save(net: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """fp32 weights (safetensors), configuration and tokenizer: what `pretrained(folder)` reads."""
    net.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


def export_fp32(trained: Path, labels: Sequence[str], folder: Path, *, max_length: int, threads: int) -> None:
    """`model.onnx` and `tokenizer.json` of the weights in `trained`.

    Raises:
        ExportDiffers: ONNX answers differently than torch.
    """
    from mlops_assets.training.export import export_text_model

    net, tokenizer = pretrained(str(trained), labels, max_length)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(folder / "tokenizer.json"))
    export_text_model(net, folder / "model.onnx", vocabulary=tokenizer.get_vocab_size(), max_length=max_length, threads=threads)
