from __future__ import annotations

import ast
import re
import shlex
from dataclasses import replace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from typer.main import get_command

from onebitfmt.cli.app import app
from onebitfmt.collection_config import (
    CollectionBase,
    Config,
    ExpertEntry,
    ExpertGroup,
    RouterEntry,
)
from onebitfmt.errors import UsageError
from onebitfmt.merge.recipe import Recipe, dump_recipe, parse_recipe
from onebitfmt.transfer.card import model_card
from tests.hubserver.card_rules import faults_of_card

BEGIN, END = "<!-- onebitfmt: begin -->", "<!-- onebitfmt: end -->"
COMMIT, OTHER_COMMIT = "c" * 40, "0123456789abcdef0123456789abcdef01234567"
TAGS = ["onebitfmt", "task-vector", "model-merging", "1bit-merging"]
RECIPE = Recipe(method="onebit_merging", lambda_onebit=0.1, lambda_dense=0.1, density=0.2)


def expert(**changes: Any) -> ExpertEntry:
    """Two groups of 2,000 and 1,000 elements, 1,500 of them one-bit; 1,500 of 6,000 bytes."""
    groups = (
        ExpertGroup(
            name="attention",
            nbytes=400,
            full=4000,
            elements=2000,
            onebit=1500,
            codings={"sign rank1": 3, "exact": 1},
            relative_squared_error="0.339449",
        ),
        ExpertGroup(name="norm", nbytes=0, full=2000, elements=1000, onebit=0, codings={"same": 2}),
    )
    entry = ExpertEntry(
        path="experts/x.obd", sha256="0" * 64, nbytes=1500, dtype="BF16", groups=groups
    )
    return replace(entry, **changes)


def config(**changes: Any) -> Config:
    """Two experts and a router."""
    base = CollectionBase(fingerprint="ab" * 32, repo="org/base", revision=COMMIT)
    chat = expert(nbytes=4_500_000, repo="org/chat", revision=OTHER_COMMIT, license="mit")
    experts = {"math": expert(repo="org/math", revision="v1", license="MIT"), "chat": chat}
    found = Config(
        base=base,
        experts=experts,
        recipe=dump_recipe(RECIPE),
        router=RouterEntry(sha256="0" * 64, nbytes=12_345),
    )
    return replace(found, **changes)


def one_expert(**changes: Any) -> Config:
    return config(experts={"math": expert(**changes)}, router=None)


def section(text: str) -> str:
    assert text.count(BEGIN) == text.count(END) == 1
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def metadata(text: str) -> dict[str, Any]:
    """The metadata as the Hub's client reads them, which the Hub does not refuse."""
    assert faults_of_card(text) == []
    found: dict[str, Any] = ModelCard(text).data.to_dict()
    assert found == yaml.safe_load(text.replace("\r\n", "\n").split("---\n")[1])
    return found


def blocks(text: str) -> dict[str, str]:
    """Code blocks by language, as a Markdown parser sees them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(ModelCard(text).text)
    return {t.info: t.content for t in tokens if t.type == "fence"}


def tables(text: str) -> list[list[list[str]]]:
    """Tables as a Markdown parser sees them: rows of the text in their cells."""
    tokens = MarkdownIt("commonmark").enable("table").parse(ModelCard(text).text)
    found: list[list[list[str]]] = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif before is not None and before.type in ("th_open", "td_open"):
            shown = [t.content for t in token.children or [] if t.type in ("text", "code_inline")]
            found[-1][-1].append("".join(shown))
    return found


# --- metadata ------------------------------------------------------------------------------------


def test_the_metadata_of_a_new_card() -> None:
    data = ModelCard(model_card(config(), "ns/name")).data
    assert data.base_model == ["org/base"]
    assert data.base_model_relation == "adapter"
    assert data.library_name == "onebitfmt"
    assert data.tags == TAGS
    assert data.license == "mit"
    assert data.license_name is None


@pytest.mark.parametrize("repo", [None, "/home/me/base", "base", "a/b/c", "../base", "a--b/c"])
def test_a_base_that_is_not_on_the_hub_is_not_named_in_the_metadata(repo: str | None) -> None:
    base = CollectionBase(fingerprint="ab" * 32, repo=repo)
    text = model_card(config(base=base), "ns/name")
    assert metadata(text).keys() == {"library_name", "tags", "license"}
    own = "---\nbase_model: org/own\n---\n"
    kept = metadata(model_card(config(base=base), "ns/name", own))
    assert kept["base_model"] == "org/own"
    assert kept["base_model_relation"] == "adapter"


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (("mit", "mit"), {"license": "mit"}),
        (("mit", None), {}),
        (("mit", "apache-2.0"), {"license": "other", "license_name": "several-licences"}),
        (("Own: 1\n---\n", "Own: 1\n---\n"), {"license": "other", "license_name": "own-1"}),
        (("1e5", "1e5"), {"license": "other", "license_name": "1e5"}),
    ],
)
def test_the_licence_is_that_of_all_experts(
    licences: tuple[str, str | None], expected: dict[str, str]
) -> None:
    experts = {str(i): expert(license=licence) for i, licence in enumerate(licences)}
    found = metadata(model_card(config(experts=experts), "ns/name"))
    assert {k: v for k, v in found.items() if k.startswith("license")} == expected


def test_a_licence_of_ours_follows_the_experts_and_one_of_the_user_stays() -> None:
    def licence(existing: str | None, *licences: str | None) -> tuple[str, dict[str, Any]]:
        experts = {str(i): expert(license=own) for i, own in enumerate(licences)}
        text = model_card(config(experts=experts), "ns/name", existing)
        return text, {k: v for k, v in metadata(text).items() if k.startswith("license")}

    first, found = licence(None, "mit")
    assert found == {"license": "mit"}
    second, found = licence(first, "mit", "llama3")
    assert found == {"license": "other", "license_name": "several-licences"}
    third, found = licence(second, "mit", None)
    assert found == {}
    assert licence(third, "mit") == (first, {"license": "mit"})
    by_hand = second.replace("license: other\nlicense_name: several-licences\n", "license: gpl\n")
    assert licence(by_hand, "mit", "llama3")[1] == {"license": "gpl"}
    assert licence("---\nlicense: mit\n---\n", "llama3")[1] == {"license": "mit"}
    assert licence("---\nlicense:\n---\n", "llama3")[1] == {"license": "llama3"}
    own_name = licence("---\nlicense_name: own\n---\n", "mit")[1]
    assert own_name == {"license": "mit", "license_name": "own"}


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("", TAGS),
        ("tags: mine\n", ["mine", *TAGS]),
        ("tags: [mine, task-vector]\n", ["mine", "task-vector", TAGS[0], *TAGS[2:]]),
        ("tags:\n- '1'\n- mine\n", ["1", "mine", *TAGS]),
    ],
)
def test_the_tags_of_the_user_stay(own: str, expected: list[Any]) -> None:
    assert metadata(model_card(config(), "ns/name", f"---\n{own}x: 1\n---\n"))["tags"] == expected


# --- what the section says -----------------------------------------------------------------------


def test_figures() -> None:
    experts, groups = tables(model_card(config(), "ns/name"))
    assert experts == [
        ["expert", "fine-tuned model", "licence", "full", "bundle", "ratio", "one-bit"],
        # 4,500,000 / 6,000 and 1,500 / 6,000 bytes; 1,500 / 3,000 elements.
        ["chat", f"org/chat@{OTHER_COMMIT[:12]}", "mit", "6.00 kB", "4.50 MB", "75000.00 %",
         "50.00 %"],
        ["math", "org/math@v1", "MIT", "6.00 kB", "1.50 kB", "25.00 %", "50.00 %"],
        ["all", "", "", "12.00 kB", "4.50 MB", "37512.50 %", "50.00 %"],
    ]  # fmt: skip
    attention = ["attention", "1 exact, 3 sign rank1", "4.00 kB", "400 B", "10.00 %", "75.00 %"]
    norm = ["norm", "2 same", "2.00 kB", "0 B", "0.00 %", "0.00 %", "exact"]
    assert groups == [
        ["expert", "group", "coding", "full", "stored", "ratio", "one-bit", "rel. sq. error"],
        ["chat", *attention, "0.3394"],
        ["chat", *norm],
        ["math", *attention, "0.3394"],
        ["math", *norm],
    ]


@pytest.mark.parametrize(
    ("recorded", "shown"), [("2e-07", "0.0000"), ("nan", "nan"), ("a|b", "a|b"), (None, "-")]
)
def test_errors_that_were_recorded(recorded: str | None, shown: str) -> None:
    onebit = replace(expert().groups[0], relative_squared_error=recorded)
    known = replace(onebit, relative_squared_error="0.5")
    text = model_card(one_expert(groups=(onebit, known)), "ns/name")
    assert [row[-1] for row in tables(text)[1][1:]] == [shown, "0.5000"]
    assert "‖δ - δ̃‖² / ‖δ‖²" in text


def test_no_error_is_claimed_where_none_was_recorded() -> None:
    onebit = replace(expert().groups[0], relative_squared_error=None)
    text = model_card(one_expert(groups=(onebit,)), "ns/name")
    assert "error" not in text
    assert tables(text)[1][0][-1] == "one-bit"


def test_the_links_lead_to_base_and_sources() -> None:
    text = model_card(config(), "ns/name")
    assert f"[`org/base`](https://huggingface.co/org/base/tree/{COMMIT}) at commit" in text
    assert f"at commit `{COMMIT}`." in text
    assert f"(https://huggingface.co/org/chat/tree/{OTHER_COMMIT})" in text
    pull_request = model_card(one_expert(repo="o/m", revision="refs/pr/1"), "ns/name")
    assert "(https://huggingface.co/o/m/tree/refs%2Fpr%2F1)" in pull_request
    unpinned = model_card(one_expert(repo="o/m"), "ns/name")
    assert "| [`o/m`](https://huggingface.co/o/m) |" in unpinned
    plain = model_card(config(base=CollectionBase(fingerprint="ab" * 32, repo="o/b")), "ns/name")
    assert "[`o/b`](https://huggingface.co/o/b)." in plain
    unknown = model_card(config(base=CollectionBase(fingerprint="ab" * 32)), "ns/name")
    assert "not recorded; fingerprint `abababababab`." in unknown


def test_commands_and_python_of_a_routed_collection() -> None:
    found = blocks(model_card(config(), "ns/name"))
    commands = [line for line in found["bash"].splitlines() if line.startswith("obd")]
    assert commands == [
        "obd inspect ns/name",
        "obd pull ns/name",
        "obd pull ns/name:chat --groups attention",
        f"obd restore org/base@{COMMIT} ns/name:chat -o chat/",
        'obd generate ns/name --prompt "..."',
    ]
    assert 'onebitfmt.open_bundle("ns/name:chat")' in found["python"]
    assert 'onebitfmt.RoutedModel.from_pretrained("ns/name")\n' in found["python"]
    assert 'model.generate("...")[0]' in found["python"]
    ast.parse(found["python"])
    assert "The router (12.35 kB) picks" in model_card(config(), "ns/name")


def test_without_a_router_an_expert_is_named() -> None:
    text = model_card(config(router=None), "ns/name")
    assert 'obd generate ns/name --prompt "..." --expert chat' in blocks(text)["bash"]
    assert 'model.generate("...", expert="chat")' in blocks(text)["python"]
    assert "There is no router: experts are chosen by name." in text


def test_an_expert_that_is_alone_is_the_repository() -> None:
    text = model_card(one_expert(), "ns/name")
    commands = [line for line in blocks(text)["bash"].splitlines() if line.startswith("obd")]
    assert commands == [
        "obd inspect ns/name",
        "obd pull ns/name",
        "obd pull ns/name --groups attention",
        f"obd restore org/base@{COMMIT} ns/name -o math/",
        'obd generate ns/name --prompt "..."',
    ]
    assert 'onebitfmt.open_bundle("ns/name")' in blocks(text)["python"]
    assert "There is no router: the only expert answers." in text
    assert [row[0] for row in tables(text)[0]] == ["expert", "math"]


def test_a_base_that_is_not_on_the_hub_is_asked_for() -> None:
    text = model_card(config(base=CollectionBase(fingerprint="ab" * 32)), "ns/name")
    found = blocks(text)
    assert "obd restore BASE ns/name:chat -o chat/" in found["bash"]
    assert 'obd generate ns/name --prompt "..." --base BASE' in found["bash"]
    assert 'from_pretrained("ns/name", base="BASE")' in found["python"]


@pytest.mark.parametrize(
    "of", [config(), config(router=None), one_expert(), config(base=CollectionBase(fingerprint=""))]
)
def test_the_command_line_takes_the_commands(of: Config) -> None:
    obd = get_command(app)
    lines = blocks(model_card(of, "ns/name"))["bash"].splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("obd ")]
    assert [name for name, *_ in commands] == ["inspect", "pull", "pull", "restore", "generate"]
    for name, *words in commands:
        context = obd.commands[name].make_context(name, words)
        given = {str(value).rstrip("/") for value in context.params.values()}
        plain = {word.rstrip("/") for word in words if not word.startswith("-")}
        assert plain - {"..."} <= given


def test_a_group_that_holds_nothing_is_no_example() -> None:
    same = replace(expert().groups[1], name="mlp")
    dense = replace(expert().groups[0], name="head", onebit=0)
    assert "--groups head\n" in model_card(one_expert(groups=(same, dense)), "ns/name")
    assert "--groups" not in model_card(one_expert(groups=(same,)), "ns/name")


def test_the_recipe_is_in_a_block() -> None:
    found = blocks(model_card(config(), "ns/name"))["yaml"]
    assert parse_recipe(found, "card") == RECIPE


@pytest.mark.parametrize(
    ("repo", "title"),
    [("ns/name", "# name"), ("ns/a_b", "# a_b"), ("ns/_a_._b", r"# \_a\_.\_b")],
)
def test_a_new_card_has_a_title(repo: str, title: str) -> None:
    body = ModelCard(model_card(config(), repo)).text
    assert body.startswith(f"\n{title}\n\n{BEGIN}\n")
    assert body.endswith(f"{END}\n")


@pytest.mark.parametrize("repo", ["name", "ns/name:math", "ns/name@main", "./x", "a/b/c", "a`/b"])
def test_what_is_no_repository_is_refused(repo: str) -> None:
    with pytest.raises(UsageError, match="not a repository"):
        model_card(config(), repo)


# --- an existing README --------------------------------------------------------------------------

README = """---
# Who made this
language: [en, de]   # both
license: 'gemma'
tags:
  - "mine"   # own tag
base_model: org/older
unknown_key: {a: 1}
---

# My experts

Some *text*.

```
---
```
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_existing_readme_keeps_its_text(end: str) -> None:
    text = model_card(config(), "ns/name", README.replace("\n", end))
    own = section(text)
    assert text.replace("\r\n", "").count("\n") == (0 if end == "\r\n" else text.count("\n"))
    expected = README.replace(
        '  - "mine"   # own tag\n',
        '  - "mine"   # own tag\n' + "".join(f"  - {tag}\n" for tag in TAGS),
    )
    expected = expected.replace("base_model: org/older", "base_model: [org/base]")
    expected = expected.replace(
        "{a: 1}\n", "{a: 1}\nbase_model_relation: adapter\nlibrary_name: onebitfmt\n"
    )
    assert text == (expected + "\n").replace("\n", end) + own + end
    assert "`mit`" in own
    assert metadata(text)["license"] == "gemma"


def test_our_section_is_replaced_where_it_is() -> None:
    before = model_card(config(), "ns/name", "# Mine\n") + "\nBelow.\n\n- - -"
    after = model_card(one_expert(), "ns/name", before)
    assert after.endswith(f"{END}\n\nBelow.\n\n- - -")
    assert "# Mine\n\n" + BEGIN in after
    assert "`chat`" not in after
    assert section(after) == section(model_card(one_expert(license=None), "ns/name"))
    inline = f"---\na: 1\n---\nbefore {BEGIN}old{END} after"
    around = model_card(config(), "ns/name", inline)
    assert around.partition(BEGIN)[0].endswith("---\nbefore ")
    assert around.partition(END)[2] == " after"


@pytest.mark.parametrize("existing", [None, "", "\n", "---\nlicense: gemma\n---\n", "\ufeff"])
def test_a_readme_without_text_gets_a_title(existing: str | None) -> None:
    text = model_card(config(), "ns/name", existing)
    assert text.count("\n# name\n\n<!--") == 1
    assert model_card(config(), "ns/name", text) == text


@pytest.mark.parametrize(
    ("own", "gap"), [("text", "\n\n"), ("text\n", "\n"), ("text\n\n", ""), ("text\n\n\n", "")]
)
def test_the_section_is_put_after_an_empty_line(own: str, gap: str) -> None:
    text = model_card(config(), "ns/name", own)
    assert text.partition(BEGIN)[0].endswith(f"---\n\n{own}{gap}")
    closed = model_card(config(), "ns/name", "---\na: 1\n---")
    assert "\n---\n\n# name\n" in closed


@pytest.mark.parametrize(
    "body",
    [
        BEGIN,
        END,
        f"{END}\n{BEGIN}",
        f"{BEGIN}\n{BEGIN}\n{END}",
        f"{BEGIN}\n{END}\n{END}",
        f"{BEGIN}\n{END}\n{BEGIN}\n{END}",
        "<!--onebitfmt:begin-->",
    ],
)
def test_damaged_markers_are_an_error(body: str) -> None:
    with pytest.raises(UsageError, match=r"^README.md of ns/name: .* then run again$"):
        model_card(config(), "ns/name", f"# T\n\n{body}\n")


def test_broken_metadata_are_an_error() -> None:
    with pytest.raises(UsageError, match="not valid in line 3"):
        model_card(config(), "ns/name", "---\na: 1\nb: c: d\n---\n")


# --- text from strangers -------------------------------------------------------------------------

HOSTILE = [
    "a | b | c",
    r"a \| b",
    "x`y``z",
    "a\n\n# heading\n",
    "<script>alert(1)</script>",
    f"{END}",
    f"text {BEGIN} {END}",
    "<!-- onebitfmt: license mit -->",
    "[link](http://evil)",
    "![image](http://evil)",
    "**bold** _it_ ~~no~~",
    "&lt;b&gt;",
    "</table></details>",
    "--- | ---",
    "\r\n---\r\n",
    "a: b # c",
    "\u202eright to left\u2028",
    "`" * 9,
    "'\"; rm -rf ~; echo $(id)",
    "x" * 5000,
    "",
    " ",
    "\\",
]


def hostile(text: str) -> Config:
    """Text of a stranger wherever there can be any."""
    group = ExpertGroup(
        name=text,
        nbytes=1,
        full=1,
        elements=1,
        onebit=1,
        codings={text: 1},
        relative_squared_error=text,
    )
    entry = expert(repo=text, revision=text, license=text, groups=(group,))
    return Config(
        base=CollectionBase(fingerprint=text, repo="org/base", revision=text),
        experts={text: entry, text + "2": replace(entry, repo=None)},
        recipe=text,
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_strangers_stays_text(text: str) -> None:
    card = model_card(hostile(text), "ns/name")
    assert model_card(hostile(text), "ns/name", card) == card
    data = metadata(card)
    licence = " ".join(filter(None, [data.get("license"), data.get("license_name")]))
    note = [f"<!-- onebitfmt: license {licence} -->\n"] if text.strip() else []
    tokens = MarkdownIt("commonmark").enable("table").parse(ModelCard(card).text)
    comments = [t.content for t in tokens if t.type == "html_block"]
    assert comments == [f"{BEGIN}\n", *note, f"{END}\n"]
    headings = [t.tag for t in tokens if t.type == "heading_open"]
    assert headings == ["h1", "h2", "h2", "h2", "h2"]
    assert [t.info for t in tokens if t.type == "fence"] == ["bash", "python", "yaml"]
    inline = [t.type for token in tokens for t in token.children or []]
    assert set(inline) <= {"text", "code_inline", "link_open", "link_close"}
    assert [len(table) for table in tables(card)] == [4, 3]
    for table in tables(card):
        assert {len(row) for row in table} == {len(table[0])}
    shown = " ".join(re.sub(r"[^\x21-\x7e]", " ", text).split())[:200]
    assert (shown or "-") in tables(card)[0][1][0]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_from_strangers_stay_one_word_of_a_command(text: str) -> None:
    card = model_card(hostile(text), "ns/name")
    commands = blocks(card)["bash"].replace("<! --", "<!--")
    words = shlex.split(commands, comments=True)
    assert words[words.index("restore") + 1 :][:4] == [
        f"org/base@{text}".replace("\r\n", "\n"),
        f"ns/name:{text}".replace("\r\n", "\n"),
        "-o",
        f"{text}/".replace("\r\n", "\n"),
    ]
    nodes = ast.walk(ast.parse(blocks(card)["python"]))
    strings = {node.value for node in nodes if isinstance(node, ast.Constant)}
    assert f"ns/name:{text}".replace("<!--", "<! --") in strings


def test_the_recipe_cannot_leave_its_block() -> None:
    recipe = f"merge_method: ties\n# ```\n# ````yaml\n{END}\n`````\n"
    card = model_card(config(recipe=recipe), "ns/name")
    assert blocks(card)["yaml"] == recipe.replace("<!--", "<! --")
    assert "``````yaml\n" in card


# --- the same again ------------------------------------------------------------------------------

pieces = st.sampled_from(
    [
        "---\n", "---\r\n", "license: mit\n", "license: other\nlicense_name: several-licences\n",
        "tags: [a]\n", "tags:\n- a\n", "# c\n", "a: b\r\n", "base_model: org/base\n", "\n", "\r\n",
        BEGIN, END, f"{BEGIN}\n<!-- onebitfmt: license mit -->\n{END}", "# T\n", "text", "```\n",
        "\ufeff", " ", "\r",
    ]
)  # fmt: skip
readmes = st.none() | st.text() | st.lists(pieces, max_size=12).map("".join)
front = st.lists(pieces, max_size=5).map("".join)
configs = st.sampled_from([config(), one_expert(), one_expert(license="x"), hostile("a|`\n")])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    configs, configs, readmes | st.tuples(front, readmes).map(lambda t: f"---\n{t[0]}---\n{t[1]}")
)
def test_a_card_of_its_own_result_is_the_same(
    first: Config, second: Config, existing: str | None
) -> None:
    try:
        card = model_card(first, "ns/name", existing)
    except UsageError:
        return
    assert model_card(first, "ns/name", card) == card
    between = model_card(second, "ns/name", card)
    assert _text_of(model_card(first, "ns/name", between)) == _text_of(card)
    before, after = _text_of(existing or ""), _text_of(card)
    assert _bare(after.partition(BEGIN)[0]) == _bare(before.partition(BEGIN)[0])
    assert after.partition(END)[2].strip() == before.partition(END)[2].strip()


def _bare(text: str) -> str:
    """Text without what may separate it from ours, and without our title."""
    return text.strip("\ufeff \t\r\n").removesuffix("# name").strip("\ufeff \t\r\n")


def _text_of(readme: str) -> str:
    """What stands below the metadata, found in another way than by the code under test."""
    if not re.match(r"\ufeff?\s*---(\r\n|\r|\n)", readme):
        return readme.lstrip("\ufeff")
    after = readme.partition("---")[2]
    return re.split(r"(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|\Z)", after, maxsplit=1)[1]
