"""The model card of a published store: what it is, what it was made from, and how it is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from coterie.errors import StoreError
from coterie.spec import format_bytes
from coterie.store import Manifest
from coterie.store.names import CARD_FOLLOWS, FIT_FACTS

_RULE = "\n---\n\n"
_PACKAGE = "https://pypi.org/project/coterie/"
_NOT_OURS = ("base_model", "base_model_relation", "library_name", "model-index", "tags", "new_version")
"""Metadata of the source's card that is about the source alone, or that is written anew."""


def write_card(manifest: Manifest, original: str | None, repo_id: str, *, base_model: str | None, nbytes: int) -> str:
    """The card of a store's repository, in Markdown with the Hub's metadata in YAML.

    The metadata of the source's card, such as its licence and languages, stay. The card of a store that `coterie fit`
    made stays, too. That of another store follows what is said of the store. If a fitted store has grown, its card is
    about another one: then only that of its source stays.

    Args:
        manifest: What the store holds.
        original: The store's own ``README.md``, or None.
        repo_id: The repository.
        base_model: Id of the repository that it was made from, or None.
        nbytes: Bytes of the store.

    Raises:
        StoreError: If the metadata of the store's own card are no YAML.
    """
    metadata, body = _read(original)
    stated = {name: value for name, value in metadata.items() if name not in _NOT_OURS}
    if base_model is not None:
        stated |= {"base_model": base_model, "base_model_relation": "quantized"}
    stated |= {"library_name": "coterie", "tags": _tags(manifest, metadata.get("tags"))}
    head = ModelCardData(**stated).to_yaml()
    is_fit = is_fitted(manifest)
    if has_grown(manifest):
        body = body.partition(CARD_FOLLOWS)[2].strip()
    text = "\n".join(_use(manifest, repo_id))
    if not is_fit:
        text = "\n".join(_about(manifest, repo_id, base_model, nbytes)) + "\n\n" + text
    if body:
        text += f"\n{_RULE}{'' if is_fit else f'{_FOLLOWS}{chr(10)}{chr(10)}'}{body}"
    return f"---\n{head.rstrip()}\n---\n\n{text}\n"


def is_fitted(manifest: Manifest) -> bool:
    """Whether a store is as `coterie fit` made it."""
    return manifest.allocation is not None and _has_fit_facts(manifest)


def has_grown(manifest: Manifest) -> bool:
    """Whether a fitted store has got experts since, which were not allocated: its card is about another one."""
    return manifest.allocation is None and _has_fit_facts(manifest)


def _has_fit_facts(manifest: Manifest) -> bool:
    return any(facts.file == FIT_FACTS for facts in manifest.files)


_FOLLOWS = "The card of the model that this store was made from follows."


def _read(card: str | None) -> tuple[dict[str, Any], str]:
    """Metadata and text of a card."""
    if card is None:
        return {}, ""
    try:
        read = ModelCard(card, ignore_metadata_errors=True)
    except Exception as error:  # what reads YAML has errors of its own
        raise StoreError(
            f"The metadata of the store's README.md are no valid YAML: {' '.join(str(error).split())[:200]}.",
            advice="Correct the lines between the two '---' and run 'coterie stores refresh'.",
        ) from error
    metadata: dict[str, Any] = read.data.to_dict()  # type: ignore[no-untyped-call]
    return metadata, str(read.text).strip()


def _tags(manifest: Manifest, known: object) -> list[str]:
    texts = [tag for tag in known if isinstance(tag, str)] if isinstance(known, list) else []
    schemes = [scheme for scheme in _schemes(manifest) if "+" not in scheme and scheme != "native"]
    return sorted({*texts, "coterie", "mixture-of-experts", *schemes})


def _schemes(manifest: Manifest) -> dict[str, int]:
    """Scheme → experts in it, the most frequent first."""
    count = Counter(record.scheme for bank in manifest.banks for record in bank.records.values())
    return dict(sorted(count.items(), key=lambda one: (-one[1], one[0])))


def _about(manifest: Manifest, repo_id: str, base_model: str | None, nbytes: int) -> Iterator[str]:
    present = sum(len(bank.records) for bank in manifest.banks)
    total = present + sum(len(bank.absent) for bank in manifest.banks)
    made_of = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else manifest.source.name
    if manifest.source.revision is not None:
        made_of += f", revision `{manifest.source.revision}`"
    schemes = ", ".join(f"{scheme} ({count})" for scheme, count in _schemes(manifest).items()) or "none"
    dense = manifest.dense_schemes
    rows = [
        ("made from", made_of),
        ("class", manifest.model.class_name),
        ("experts", f"{present} of {total}" + ("" if present == total else ": a partial store")),
        ("schemes of experts", schemes),
        ("outside experts", str(dense)),
        ("size", format_bytes(nbytes)),
    ]
    if manifest.model.component is not None:
        rows.insert(2, ("component", manifest.model.component))
    yield f"# {repo_id.rpartition('/')[2]}"
    yield ""
    yield (
        f"A store of [Coterie]({_PACKAGE}), which runs Mixture-of-Experts models whose experts do not fit in memory. "
        "Other libraries do not open it."
    )
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield from (f"| {name} | {value} |" for name, value in rows)


def _use(manifest: Manifest, repo_id: str) -> Iterator[str]:
    partial = "" if manifest.is_complete else " --missing mask"
    yield "## Use"
    yield ""
    yield "Where Coterie is installed:"
    yield ""
    yield "```"
    yield f'coterie generate {repo_id} "Once upon a time"{partial}'
    yield f"coterie plan {repo_id}"
    yield "```"
    yield ""
    yield "The first command downloads the store. The second one says without a download whether it runs, and how fast."
