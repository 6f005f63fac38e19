"""What both READMEs say is true (names, commands, paths, messages, tables) and the same."""

import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
FILES = ("README.md", "README.zh.md")
READMES = {name: (REPO / name).read_text(encoding="utf-8") for name in FILES}
EXAMPLES = {"case.yml", "inventories/default/host_vars/gpu-box.yml"}
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
GENERATED = re.compile(r"<!-- (\w+): made by bin/readme -->\n(.*?)<!-- /\1 -->", re.DOTALL)


def module_of(name, path):
    loader = SourceFileLoader(name, str(REPO / path))
    module = module_from_spec(spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


readme = module_of("readme", "bin/readme")
both = pytest.mark.parametrize("name", FILES)


def blocks(name, *languages):
    found = FENCE.findall(READMES[name])
    return [text for language, text in found if not languages or language in languages]


def code_spans(name):
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", READMES[name]))


def settings():
    return {name for _, _, options in readme.public_settings() for name in options}


def test_tables_are_those_of_specs_and_planner():
    done = subprocess.run(
        [sys.executable, REPO / "bin/readme", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr + "Fix: .venv-test/bin/python bin/readme"


def test_a_difference_is_told_and_repaired(tmp_path, monkeypatch, capsys):
    for name in FILES:
        changed = READMES[name].replace("| `engine_port` |", "| `engine_prot` |")
        (tmp_path / name).write_text(changed, encoding="utf-8")
    for part in ("roles", "docs", "inventories", "tests", "deploy.yml"):
        (tmp_path / part).symlink_to(REPO / part)
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    assert readme.main(check=True) == 1
    told = capsys.readouterr().out
    assert "-| `engine_prot` |" in told
    assert "+| `engine_port` |" in told
    assert readme.main(check=False) == 0
    assert readme.main(check=True) == 0
    assert all((tmp_path / name).read_text() == READMES[name] for name in FILES)


def test_every_setting_has_chinese_and_no_other():
    chinese = yaml.safe_load((REPO / "docs/settings.zh.yml").read_text(encoding="utf-8"))
    assert set(chinese["settings"]) == settings()
    assert set(chinese["roles"]) == {role for role, _, _ in readme.public_settings()}
    for _, _, options in readme.public_settings():
        for name, option in options.items():
            texts = (readme.marked_up(option["description"]), chinese["settings"][name])
            # Numbers and names show when the English has changed and the Chinese has not.
            english, translated = (set(re.findall(r"`[^`]+`|\d+", text)) for text in texts)
            assert english == translated, name
    written = "\n".join(text for _, text in GENERATED.findall(READMES["README.zh.md"]))
    unused = [word for word in chinese["words"].values() if word not in written]
    assert unused == []


def test_both_have_the_same_structure():
    english, chinese = ([shape(part) for part in sections(name)] for name in FILES)
    assert len(english) == len(chinese) > 15
    for number, (mine, other) in enumerate(zip(english, chinese, strict=True)):
        assert mine == other, f"section {number}: {sections('README.md')[number][:60]!r}"


def sections(name):
    """The text under each `##`, tables of bin/readme left out: those are compared as they are."""
    return re.split(r"^## ", GENERATED.sub("", READMES[name]), flags=re.MULTILINE)


def shape(section):
    """What a section is made of, whatever the language."""
    text = FENCE.sub("```", section)
    rows = [re.split(r" \| ", row) for row in re.findall(r"^\| (.+) \|$", text, re.MULTILINE)]
    prose = re.sub(r"`[^`\n]*`", "", text)
    return {
        "headings": re.findall(r"^#+ ", text, re.MULTILINE),
        "blocks and items": re.findall(r"^(```|- |<!-- /?\w+ -->)", text, re.MULTILINE),
        "links": len(re.findall(r"\]\([^)]+\)", text)),
        "table cells": [[names(cell) for cell in row] for row in rows],
        "names in prose": sorted(
            re.findall(r"`[^`\n]*`", re.sub(r"^\|.*\n", "", text, flags=re.M))
        ),
        "numbers": sorted(re.findall(r"(?<![A-Za-z\d.-])\d(?:[\d.,]*\d)?", prose)),
    }


def names(cell):
    """What stands in code font, whatever its order."""
    return sorted(re.findall(r"`([^`\n]+)`", cell))


def test_both_have_the_same_code():
    english, chinese = (blocks(name, "bash", "text", "yaml", "python") for name in FILES)
    assert english == chinese
    assert len(blocks(FILES[0], "mermaid")) == len(blocks(FILES[1], "mermaid")) == 1
    arrows = [re.findall(r"\w+ -[-.]+>?|---", blocks(name, "mermaid")[0]) for name in FILES]
    assert arrows[0] == arrows[1]


def test_both_name_the_same_things():
    """Settings, commands, paths and messages: everything in code font, however it is told."""
    english, chinese = (sorted(code_spans(name)) for name in FILES)
    assert english == chinese


def test_the_python_example_compiles():
    for text in blocks("README.md", "python"):
        compile(text, "README.md", "exec")


@both
def test_make_targets_exist(name):
    targets = set(re.findall(r"^([a-z]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    used = [word for text in [*blocks(name, "bash"), *code_spans(name)]
            for word in re.findall(r"\bmake ([a-z]+)", text)]  # fmt: skip
    assert used
    assert set(used) - targets == set()


MANAGERS = ("systemd", "supervisor", "compose")


@both
@pytest.mark.parametrize("manager", MANAGERS)
def test_commands_of_the_host_exist(name, manager):
    script = (REPO / f"roles/{manager}/templates/deepseek-r1.j2").read_text(encoding="utf-8")
    assert script.splitlines()[1] == f"# manager: {manager}"
    verbs = set(re.findall(r"^  ([a-z]+)\)\s", script, re.MULTILINE))
    texts = [*blocks(name, "bash"), *code_spans(name)]
    used = {verb for text in texts for verb in re.findall(r"(?:^|\n)deepseek-r1 (\w+)", text)}
    assert used == {"start", "stop", "restart", "status", "logs"}
    assert used <= verbs


@both
def test_tags_are_those_of_the_play(name):
    (play,) = yaml.safe_load((REPO / "deploy.yml").read_text(encoding="utf-8"))
    tags = {tag for one in tags_of(play) for tag in one} - {"always"}
    told = next(line for line in READMES[name].splitlines() if "`services`, `model`" in line
                or "`services`、`model`" in line)  # fmt: skip
    assert set(names(told)) == tags
    for text in blocks(name, "bash"):
        for given in re.findall(r"--tags (\S+)", text):
            assert set(given.split(",")) <= tags


def tags_of(play):
    for task in play["tasks"]:
        yield task["tags"] if isinstance(task["tags"], list) else [task["tags"]]


@both
def test_paths_exist(name):
    """Those of the repository; reports/ and secrets/ are made by a deploy."""
    folders = "roles|playbooks|inventories|tests|bin|docs|requirements|compose"
    path = re.compile(rf"(?<![\w/.-])((?:{folders})/[\w./-]*|(?:\.ci/)\w+|\w+\.yml)(?![\w/])")
    text = "\n".join([*blocks(name, "bash", "text"), *code_spans(name)])
    found = set(path.findall(text)) - EXAMPLES
    assert len(found) > 10
    missing = [one for one in found if not (REPO / one).exists() and not of_a_role(one)]
    assert missing == []
    linked = re.findall(r"\]\(([^)#]+)\)", READMES[name])
    assert [one for one in linked if not (REPO / one).exists()] == []


def of_a_role(path):
    return any((REPO / "roles").glob(f"*/{path}"))


@both
def test_links_inside_lead_to_a_heading(name):
    headings = re.findall(r"^#+ (.+)", READMES[name], re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", READMES[name])) <= anchors


@both
def test_settings_named_are_settings(name):
    used = set()
    for text in blocks(name, "yaml"):
        used |= set(yaml.safe_load(text))
    for text in [*blocks(name, "bash"), *code_spans(name)]:
        used |= set(re.findall(r"-e (\w+)=", text))
    for span in code_spans(name):
        used |= set(re.findall(r"^([a-z]\w*)(?:=|: )[\w./]+$", span))
        prefix, _, rest = span.partition("_")
        if rest and re.fullmatch(r"\w+", span) and (REPO / "roles" / prefix).is_dir():
            used.add(span)
    assert len(used) > 20
    assert used - settings() == set()


def test_the_role_settings_accepts_every_example():
    module = module_of("check_settings", "roles/settings/action_plugins/check_settings.py")
    specs, _names = module.load_roles(REPO / "roles")
    for text in blocks("README.md", "yaml"):
        for setting, value in yaml.safe_load(text).items():
            assert module.check_value(setting, value, specs[setting]) is None, setting


@pytest.fixture(scope="module")
def sources():
    """All the project's words, with texts that are broken over lines put together."""
    paths = [path for pattern in ("roles/*/*/**/*", "bin/bootstrap", "playbooks/*.yml")
             for path in REPO.glob(pattern) if path.is_file() and path.suffix in
             ("", ".py", ".yml", ".lua", ".j2")]  # fmt: skip
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    text = re.sub(r"""["']\s*(?:~\s*)?\n\s*(?:~\s*)?f?["']""", "", text)
    return " ".join(text.split())


@both
def test_messages_of_troubleshooting_are_the_projects_own(name, sources):
    quoted = []
    for line in re.findall(r"^\| (.+?) \| .+ \|$", troubleshooting(name), re.MULTILINE)[1:]:
        quoted += re.findall(r"`([^`]+)`", line)
    assert len(quoted) > 20
    wrong = []
    for message in quoted:
        # 'NAME: value' and the like are put together from a setting's name and a sentence.
        parts = [part.strip() for part in re.split(r"…|\w+: value|^[\w ]+: (?=this)", message)]
        wrong += [(message, part) for part in parts if part and part not in sources]
    assert wrong == []


def troubleshooting(name):
    headings = [m.start() for m in re.finditer(r"^## ", READMES[name], re.MULTILINE)]
    number = re.findall(r"^## (.+)", READMES["README.md"], re.MULTILINE).index("Troubleshooting")
    return READMES[name][headings[number] : headings[number + 1]]


def test_the_last_screen_is_the_roles_own():
    template = (REPO / "roles/report/templates/screen.txt.j2").read_text(encoding="utf-8")
    lines = [line for line in template.splitlines() if line and not line.startswith("{%")]
    # What stands between the values is escaped, each value may be anything.
    patterns = [".*".join(map(re.escape, re.split(r"\{\{.*?\}\}", line))) for line in lines]
    shown = [line for line in blocks("README.md", "text")[0].splitlines() if line]
    assert len(shown) == len(patterns)
    for line, pattern in zip(shown, patterns, strict=True):
        assert re.fullmatch(pattern, line), line


@both
def test_what_can_be_deployed_is_what_the_planner_deploys(name):
    from r1_planner import wishes  # bin/readme has made it importable

    names = [readme.ENGINE_NAMES[engine] for engine in wishes.ENGINES if engine != "auto"]
    able = [readme.ENGINE_NAMES[engine] for engine in wishes.DEPLOYABLE_ENGINES]
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| ([^|]+) \|$", READMES[name], re.MULTILINE)
    deployed, planned = next(row for row in rows if "llama.cpp" in row[0])
    runtime, not_runtime = rows[rows.index((deployed, planned)) + 1]
    assert sorted(one for one in names if one in deployed) == sorted(able)
    assert sorted(one for one in names if one in planned) == sorted(set(names) - set(able))
    assert set(re.findall(r"`(\w+)`", runtime)) == set(wishes.DEPLOYABLE_RUNTIMES)
    others = set(wishes.RUNTIMES) - set(wishes.DEPLOYABLE_RUNTIMES) - {"auto"}
    assert set(re.findall(r"`(\w+)`", not_runtime)) == others
