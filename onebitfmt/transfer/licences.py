"""Licences as the Hub's metadata name them: it refuses a README with any other identifier."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

# huggingface.co/docs/hub/repositories-licenses; `other` is not for an expert to choose.
_LISTED: Final = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0
odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1
llama3.2 llama3.3 llama4 grok2-community gemma unknown
"""
HUB_LICENCES: Final = frozenset(_LISTED.split())
OTHER: Final = "other"
SEVERAL: Final = "several-licences"

_MAX_NAME: Final = 96


def hub_licence(licences: Iterable[str | None]) -> tuple[str, str | None] | None:
    """The Hub's `license` and `license_name` for all of these together.

    A name stands only beside `other`: where they differ, or are one that the Hub does not list.
    None where one of them is not known, for then nothing can be said of the whole.
    """
    names = {(text or "").strip().lower() for text in licences}
    if not names or "" in names:
        return None
    if len(names) > 1:
        return OTHER, SEVERAL
    name = names.pop()
    if name in HUB_LICENCES:
        return name, None
    # Short, lower case, without spaces.
    short = re.sub(r"[^a-z0-9.]+", "-", name)[:_MAX_NAME].strip("-.")
    return OTHER, short or OTHER
