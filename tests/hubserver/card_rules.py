"""What the Hub refuses in the metadata of a model card."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

_REPO_ID: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*|[\w-][\w.-]*")
_RELATIONS: Final = ("adapter", "merge", "quantized", "finetune")
_LICENSES: Final = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license grok2-community openmdw-1.1
llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma
unknown other
"""


def front_matter(text: str) -> str | None:
    """The YAML block that opens a card; None where there is none."""
    found = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", text, re.DOTALL)
    return found[1] if found else None


def metadata(text: str) -> dict[str, Any]:
    """A card's metadata; empty where it has none that can be read."""
    try:
        found = yaml.safe_load(front_matter(text) or "")
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def faults_of_card(text: str) -> list[str]:
    """What is wrong with a card, in the Hub's words."""
    block = front_matter(text)
    if block is None:
        return []
    try:
        found = yaml.safe_load(block)
    except yaml.YAMLError as e:
        return [f"Invalid YAML: {e}"]
    if not isinstance(found, dict):
        return ["YAML metadata must be an object"]
    return list(_faults(found))


def _faults(card: Mapping[str, Any]) -> Iterator[str]:
    for model in _listed(card.get("base_model")):
        if not isinstance(model, str) or not _REPO_ID.fullmatch(model):
            yield (
                f'"base_model" with value "{model}" is not valid. '
                "Use a model id from https://hf.co/models."
            )
    relation = card.get("base_model_relation")
    if relation is not None and relation not in _RELATIONS:
        yield f'"base_model_relation" must be one of [{", ".join(_RELATIONS)}]'
    for name in _listed(card.get("license")):
        if name not in _LICENSES.split():
            yield f'"license" must be one of the known licenses, not "{name}"'
    for name in ("library_name", "pipeline_tag", "license_name", "license_link"):
        if not isinstance(card.get(name, ""), str):
            yield f'"{name}" must be a string'
    if not all(isinstance(tag, str) for tag in _listed(card.get("tags"))):
        yield '"tags" must be an array of strings'


def _listed(value: object) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
