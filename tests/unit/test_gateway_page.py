"""docs/gateway.md: each test that it names exists, and each pitfall of the bench is named."""

import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs/gateway.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`(\w+\.py)::(\w+)`", PAGE))


def functions(file: str) -> set[str]:
    folder = "tests/bench" if file == "pitfalls.py" else "tests/gateway"
    text = (REPO / folder / file).read_text(encoding="utf-8")
    return set(re.findall(r"^(?:async )?def (\w+)\(", text, re.MULTILINE))


def test_every_test_that_is_named_exists():
    assert len(NAMED) > 80
    assert PAGE.count("::") == len(
        re.findall(r"`\w+\.py::\w+`|`FILE::TEST`|`pitfalls.py::NAME`", PAGE)
    )
    missing = {(file, name) for file, name in NAMED - {("pitfalls.py", "NAME")}
               if name not in functions(file)}  # fmt: skip
    assert not missing


def test_every_pitfall_of_the_bench_is_named():
    text = (REPO / "tests/bench/pitfalls.py").read_text(encoding="utf-8")
    tried = set(re.findall(r"^@pitfall\(.*\)\ndef (\w+)\(", text, re.MULTILINE))
    assert len(tried) >= 25
    assert tried == {name for file, name in NAMED if file == "pitfalls.py"} - {"NAME"}


def test_no_line_of_a_table_is_without_a_test():
    promises = PAGE.split("## The pitfalls on three gateways")[0]
    tables = re.findall(
        r"^\| (?:Pitfall|Promise) \|.*\n\|[-|]+\n((?:\| .*\n)+)", promises, re.MULTILINE
    )
    assert len(tables) == promises.count("| Tests |") > 6
    assert all("::" in row for table in tables for row in table.splitlines())
