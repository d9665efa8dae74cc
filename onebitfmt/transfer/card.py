"""README.md of a collection on the Hub, the model card, from what config.json says.

Ours are some keys of its metadata and the section between two markers; everything else belongs to
whoever wrote it and keeps its bytes. The card depends on its inputs alone: no dates, no versions.
Names, licences and revisions come from strangers, so each is a word in backticks or spelled out in
character references, which no Markdown or HTML parser takes for structure.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

from onebitfmt.collection_config import CollectionBase, Config, ExpertEntry, ExpertGroup
from onebitfmt.errors import UsageError
from onebitfmt.hub.address import HubId, parse_hub_id
from onebitfmt.report.quantities import percent, size
from onebitfmt.transfer.front_matter import Readme
from onebitfmt.transfer.licences import hub_licence

BEGIN: Final = "<!-- onebitfmt: begin -->"
END: Final = "<!-- onebitfmt: end -->"
LIBRARY: Final = "onebitfmt"
TAGS: Final = ("onebitfmt", "task-vector", "model-merging", "1bit-merging")

_HUB: Final = "https://huggingface.co"
_PROJECT: Final = "https://pypi.org/project/onebitfmt/"
# Looks past spaces that an editor may change; no text from others in the section holds a `<!--`.
_MARKER: Final = re.compile(r"<!--\s*onebitfmt:\s*(begin|end)\s*-->")
# Says which licence in the metadata is ours, so that it changes with the experts.
_LICENCE_NOTE: Final = re.compile(r"<!-- onebitfmt: license (\S+)(?: (\S+))? -->")
_WORD: Final = re.compile(r"[A-Za-z0-9._/@:+-]+")
_HARMLESS: Final = frozenset(" .,()/+-")
_REVISION: Final = re.compile(r"(?!.*\.\.)[A-Za-z0-9._/-]+")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHORT: Final = 12
_MAX_SHOWN: Final = 200
_UNKNOWN: Final = "BASE"

Licence = tuple[str, str | None]


def model_card(config: Config, repo: str, existing: str | None = None) -> str:
    """README.md of the collection `repo` (ns/name); `existing` is the one there, if any.

    Its own result gives the same card again. Raises `UsageError` for a README of which the metadata
    or our markers are broken; the message says what to correct.
    """
    if not _is_repo(repo):
        raise UsageError(f"{repo!r} is not a repository (ns/name)")
    readme = Readme.parse(existing or "", f"README.md of {repo}")
    before = readme.metadata()
    start, end = _place(readme)
    licence = _licence(config, before, readme.body[start:end])
    section = "\n".join([BEGIN, *_section(config, repo, licence[0]), END])
    section = section.replace("\n", readme.line_end)
    if start == end:
        section = _appended(readme, repo, section)
    body = readme.body[:start] + section + readme.body[end:]
    changes = {**_metadata(config, before), **licence[1]}
    return str(replace(readme, body=body).with_metadata(changes))


def _is_repo(text: str) -> bool:
    return parse_hub_id(text) == HubId(repo=text)


# --- metadata ------------------------------------------------------------------------------------


def _metadata(config: Config, before: Mapping[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    # The Hub refuses what cannot be a model there, as the path of a local base.
    if config.base.repo is not None and _is_repo(config.base.repo):
        changes["base_model"] = [config.base.repo]
    if {**before, **changes}.get("base_model") is not None:
        changes["base_model_relation"] = "adapter"
    tags = before.get("tags")
    own = tags if isinstance(tags, list) else [] if tags is None else [tags]
    missing = [tag for tag in TAGS if tag not in own]
    return {**changes, "library_name": LIBRARY, "tags": [*own, *missing]}


def _licence(
    config: Config, before: Mapping[str, Any], section: str
) -> tuple[Licence | None, dict[str, str | None]]:
    """The licence to note as ours, and what to change in the metadata.

    One of the user's own stays; one that the section there notes as ours follows the experts.
    """
    note = _LICENCE_NOTE.search(section)
    license, name = note.groups() if note else (None, None)
    is_ours = before.get("license") == license and name in (None, before.get("license_name"))
    if not is_ours and before.get("license") is not None:
        return None, {}
    found = hub_licence(entry.license for entry in config.experts.values())
    changes: dict[str, str | None] = {}
    if is_ours:
        changes = {"license": None} if name is None else {"license": None, "license_name": None}
    if found is not None:
        changes["license"] = found[0]
        if found[1] is not None:
            changes["license_name"] = found[1]
    return found, changes


# --- our section in its place --------------------------------------------------------------------


def _place(readme: Readme) -> tuple[int, int]:
    """Where our section is in the body; an empty range at its end where there is none."""
    found = list(_MARKER.finditer(readme.body))
    if not found:
        return len(readme.body), len(readme.body)
    if [marker[1] for marker in found] != ["begin", "end"]:
        raise UsageError(
            f"{readme.where}: expected one line {BEGIN} and below it one line {END}, but found "
            f"{', '.join(marker[1] for marker in found)}; put them right, or remove them all, then "
            "run again"
        )
    return found[0].start(), found[1].end()


def _appended(readme: Readme, repo: str, section: str) -> str:
    """The section and what goes before it: an empty line, and a title where there is no text."""
    end = readme.line_end
    before = readme.closing + readme.body
    if not readme.body.strip("\ufeff \t\r\n"):
        section = f"# {_title(repo)}{end}{end}{section}"
    line_ends = re.findall(r"\r\n|\r|\n", before[len(before.rstrip("\r\n")) :])
    gap = max(0, 2 - len(line_ends)) if before else 0
    return end * gap + section + end


def _title(repo: str) -> str:
    # An underscore that is not inside a word may begin or end emphasis.
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", repo.partition("/")[2])


# --- our section ---------------------------------------------------------------------------------


def _section(config: Config, repo: str, licence: Licence | None) -> Iterator[str]:
    """The lines of the section; a block is a line of its own with line ends inside."""
    if licence is not None:
        yield f"<!-- onebitfmt: license {' '.join(filter(None, licence))} -->"
    yield ""
    yield _intro(config)
    yield ""
    yield _base(config.base)
    yield "\n## Use\n"
    yield _fenced("bash", _commands(config, repo))
    yield ""
    yield _fenced("python", _python(config, repo))
    yield "\n## Experts\n"
    yield from _experts(config)
    yield (
        "\nFull is the tensors of the fine-tuned model, bundle all that is here of the expert. "
        + _routing(config)
    )
    yield "\n## Merge recipe\n"
    yield _fenced("yaml", config.recipe)
    yield "\n## Storage by layer group\n"
    yield from _groups(config)
    yield ""


def _intro(config: Config) -> str:
    kept = (
        "one sign a weight and a few scales where a tensor is one-bit, all else exactly, bit for "
        "bit."
    )
    library = f"[{LIBRARY}]({_PROJECT})"
    if len(config.experts) == 1:
        return (
            "This is an expert, fine-tuned from a base model and kept as what it changed of it: "
            f"{kept} {library} rebuilds it as a plain checkpoint, or runs it."
        )
    return (
        f"These are {len(config.experts)} experts, fine-tuned from one base model and kept as what "
        f"each changed of it: {kept} {library} rebuilds each as a plain checkpoint, or runs all as "
        "one routed, merged model."
    )


def _base(base: CollectionBase) -> str:
    if base.repo is None:
        return f"Base model: not recorded; fingerprint {_shown(base.fingerprint[:_SHORT])}."
    if base.revision is None:
        return f"Base model: {_link(base.repo, None, base.repo)}."
    kind = "commit" if _COMMIT.fullmatch(base.revision) else "revision"
    where = _link(base.repo, base.revision, base.repo)
    return f"Base model: {where} at {kind} {_shown(base.revision)}."


def _commands(config: Config, repo: str) -> str:
    name, expert, of_expert = _example(config, repo)
    base = _base_id(config.base)
    lines = ["pip install 'onebitfmt[transformers]'", ""]
    if base == _UNKNOWN:
        lines.append(f"# {_UNKNOWN} is the base model: a folder, or a Hub id")
    lines += ["# what is here, without fetching it", f"obd inspect {repo}"]
    lines += ["# all of it", f"obd pull {repo}"]
    if group := _example_group(expert):
        lines.append("# one layer group of one expert")
        lines.append(f"obd pull {shlex.quote(of_expert)} --groups {shlex.quote(group)}")
    lines.append("# an expert as a plain checkpoint")
    lines.append(f"obd restore {base} {shlex.quote(of_expert)} -o {shlex.quote(name + '/')}")
    lines.append("# answer a prompt")
    generate = f'obd generate {repo} --prompt "..."'
    if _names_expert(config):
        generate += f" --expert {shlex.quote(name)}"
    if base == _UNKNOWN:
        generate += f" --base {_UNKNOWN}"
    return "\n".join([*lines, generate])


def _python(config: Config, repo: str) -> str:
    name, _, of_expert = _example(config, repo)
    base = f', base="{_UNKNOWN}"' if _base_id(config.base) == _UNKNOWN else ""
    expert = f", expert={json.dumps(name)}" if _names_expert(config) else ""
    return "\n".join(
        [
            "import onebitfmt",
            "",
            f"bundle = onebitfmt.open_bundle({json.dumps(of_expert)})",
            f"model = onebitfmt.RoutedModel.from_pretrained({json.dumps(repo)}{base})",
            f'print(model.generate("..."{expert})[0])',
        ]
    )


def _example(config: Config, repo: str) -> tuple[str, ExpertEntry, str]:
    """An expert for examples: its name, its entry and its Hub id."""
    name = min(config.experts)
    alone = len(config.experts) == 1
    return name, config.experts[name], repo if alone else f"{repo}:{name}"


def _example_group(expert: ExpertEntry) -> str | None:
    stored = [group for group in expert.groups if group.nbytes]
    onebit = [group for group in stored if group.onebit]
    return next((group.name for group in [*onebit, *stored]), None)


def _names_expert(config: Config) -> bool:
    return config.router is None and len(config.experts) > 1


def _base_id(base: CollectionBase) -> str:
    """The base as a word of a command; a placeholder where it is not known to be on the Hub."""
    if base.repo is None or not _is_repo(base.repo):
        return _UNKNOWN
    return shlex.quote(str(HubId(repo=base.repo, revision=base.revision)))


def _routing(config: Config) -> str:
    if config.router is not None:
        return f"The router ({size(config.router.nbytes)}) picks the expert for each prompt."
    if len(config.experts) == 1:
        return "There is no router: the only expert answers."
    return "There is no router: experts are chosen by name."


# --- tables --------------------------------------------------------------------------------------


def _experts(config: Config) -> Iterator[str]:
    columns = ("expert", "fine-tuned model", "licence", "full", "bundle", "ratio", "one-bit")
    rows = []
    for name, entry in sorted(config.experts.items()):
        source = "-" if entry.repo is None else _link(entry.repo, entry.revision, _source(entry))
        licence = "-" if entry.license is None else _shown(entry.license)
        rows.append([_shown(name), source, licence, *_quantities([entry])])
    if len(rows) > 1:
        rows.append(["all", "", "", *_quantities(list(config.experts.values()))])
    yield from _table(columns, rows, left=3)


def _source(entry: ExpertEntry) -> str:
    revision = entry.revision
    if revision is None:
        return str(entry.repo)
    return f"{entry.repo}@{revision[:_SHORT] if _COMMIT.fullmatch(revision) else revision}"


def _quantities(entries: Sequence[ExpertEntry]) -> list[str]:
    full, stored = sum(e.full for e in entries), sum(e.nbytes for e in entries)
    groups = [group for entry in entries for group in entry.groups]
    onebit, elements = sum(g.onebit for g in groups), sum(g.elements for g in groups)
    return [size(full), size(stored), percent(stored, full), percent(onebit, elements)]


def _groups(config: Config) -> Iterator[str]:
    pairs = [
        (name, group) for name, entry in sorted(config.experts.items()) for group in entry.groups
    ]
    columns = ["expert", "group", "coding", "full", "stored", "ratio", "one-bit"]
    rows = [
        [
            _shown(name),
            _shown(group.name),
            ", ".join(f"{n} {_text(coding)}" for coding, n in sorted(group.codings.items())),
            size(group.full),
            size(group.nbytes),
            percent(group.nbytes, group.full),
            percent(group.onebit, group.elements),
        ]
        for name, group in pairs
    ]
    if not any(group.relative_squared_error for _, group in pairs):
        yield from _table(columns, rows, left=3)
        return
    errors = [_error(group) for _, group in pairs]
    with_errors = [[*row, error] for row, error in zip(rows, errors, strict=True)]
    yield from _table([*columns, "rel. sq. error"], with_errors, left=3)
    yield (
        "\nThe relative squared error is ‖δ - δ̃‖² / ‖δ‖² of the group's one-bit tensors, where δ "
        "is what the fine-tuning changed and δ̃ what is kept of it."
    )


def _error(group: ExpertGroup) -> str:
    text = group.relative_squared_error
    if text is None:
        return "-" if group.onebit else "exact"
    try:
        return f"{float(text):.4f}"
    except ValueError:
        return _shown(text)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> Iterator[str]:
    """A table of which so many columns are text, to the left; the others are numbers."""
    rule = ["---"] * left + ["---:"] * (len(columns) - left)
    for row in (columns, rule, *rows):
        yield f"| {' | '.join(row)} |"


# --- text from strangers -------------------------------------------------------------------------


def _shown(text: str) -> str:
    """A name as code where it is a plain word, else as `_text`."""
    return f"`{text}`" if _WORD.fullmatch(text) and len(text) <= _MAX_SHOWN else _text(text)


def _text(text: str) -> str:
    """Text that means nothing in Markdown, HTML and tables, on one line and not too long."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    cut = words if len(words) <= _MAX_SHOWN else words[:_MAX_SHOWN] + "..."
    return "".join(c if c.isalnum() or c in _HARMLESS else f"&#{ord(c)};" for c in cut) or "-"


def _link(repo: str, revision: str | None, label: str) -> str:
    if not _is_repo(repo) or (revision is not None and not _REVISION.fullmatch(revision)):
        return _shown(label)
    tree = "" if revision is None else f"/tree/{quote(revision, safe='')}"
    return f"[{_shown(label)}]({_HUB}/{repo}{tree})"


def _fenced(language: str, text: str) -> str:
    """A code block; a comment of HTML in it is broken, for it could pass for our marker."""
    lines = re.sub(r"\r\n?", "\n", text).strip("\n").replace("<!--", "<! --")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))
    return f"{fence}{language}\n{lines}\n{fence}"
