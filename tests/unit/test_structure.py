"""One name means one thing in the whole package, a module fits on a few screens, and a header's name stands once."""

import ast
from collections import defaultdict
from pathlib import Path

import consumerkit

PACKAGE = Path(consumerkit.__file__).parent
MODULES = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
MOST_LINES = 300
MOST_PARAMETERS = 5
TOO_LONG = {
    "engine/transaction/unit_of_work.py": "the two forms of one transaction stand side by side (decision 4)",
    "guards.py": "two public functions with their overloads and docstrings",
    "handlers/attributes.py": "one class with a check for each attribute of a handler",
    "policies/retry.py": "one frozen value with its docstring and its checks",
    "storage/dialects/postgresql.py": "one dialect with its statements",
    "storage/parking/lot.py": "all statements that change one table",
    "transports/aiokafka/group.py": "one member of a group",
    "transports/base.py": "the specification of a transport, half of it prose",
    "transports/confluent/thread.py": "the one thread that uses a client",
    "transports/memory/group.py": "one member of a group",
    "worker/worker.py": "the public class, a third of it docstrings",
}
"""Modules that are one thing, and which; no other may join them."""


def test_no_two_modules_define_a_public_class_of_one_name() -> None:
    found = defaultdict(list)
    for name, text in MODULES.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(name)
    assert {name: modules for name, modules in found.items() if len(modules) > 1} == {}


def test_a_module_has_at_most_three_hundred_lines_and_the_list_of_longer_ones_only_shrinks() -> None:
    longer = {name for name, text in MODULES.items() if len(text.splitlines()) > MOST_LINES}
    assert longer - TOO_LONG.keys() == set(), "split it by what it does"
    assert TOO_LONG.keys() - longer == set(), "it is short enough now: take it off the list"


def test_no_constructor_of_the_engine_takes_more_than_five_things() -> None:
    over = {
        (name, node.name)
        for name, text in MODULES.items()
        if name.startswith("engine/")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, ast.FunctionDef) and method.name == "__init__"
        if len([*method.args.posonlyargs, *method.args.args, *method.args.kwonlyargs]) - 1 > MOST_PARAMETERS
    }
    assert over == set(), "a frozen value, or one of what it takes, can hold some of it"


def test_no_text_stands_as_a_statement_that_nothing_uses() -> None:
    """As where a message was broken over two lines without parentheses: its second half is lost."""
    lost = [
        f"{name}:{node.lineno}"
        for name, text in MODULES.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.JoinedStr)
    ]
    assert lost == []


def test_headers_of_our_own_have_their_names_in_one_place_each() -> None:
    def places(text: str) -> list[str]:
        constants = {
            name: [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
            for name, code in MODULES.items()
            if not name.startswith("demo/")
        }
        return [name for name, values in constants.items() if text in values]

    assert places("message-id") == ["storage/outbox.py"]
    assert places("consumerkit-dlq-") == ["dead_letters/formats/consumerkit.py"]
