"""What a class or function in a Python file depends on in that file, as a hash: edits of the rest do not change it."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

UNFOLLOWED = {"globals", "locals", "vars", "eval", "exec", "__import__", "importlib"}


def digest_of(file: Path, name: str) -> str | None:
    """Return the hash of the top-level statements that `name` leads to in a file, in their order.

    A statement is reached if it binds or mentions a name that a reached one uses. Star imports always are, and the
    block of a running script (`if __name__ == "__main__"`) never is. `None` for a file that cannot be parsed, that does
    not bind the name, or whose code looks names up in ways that cannot be followed.
    """
    try:
        statements = ast.parse(file.read_bytes()).body
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    bound = [set(_bound(statement)) for statement in statements]
    if not any(name in names for names in bound):
        return None
    reached = {i for i, names in enumerate(bound) if "*" in names}
    waiting, seen = [name, *(used for i in reached for used in _used(statements[i]))], set[str]()
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        for i, names in enumerate(bound):
            if one in names and i not in reached:
                reached.add(i)
                waiting += _used(statements[i])
    if seen & UNFOLLOWED:
        return None
    text = "\n".join(ast.dump(statements[i]) for i in sorted(reached))
    return hashlib.sha256(text.encode()).hexdigest()


def _bound(statement: ast.stmt) -> Iterator[str]:
    """The names that a top-level statement binds or changes, inside its blocks too."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name
        return
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        for alias in statement.names:
            yield alias.asname or alias.name.partition(".")[0]
        return
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return  # a docstring
    if isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'":
        return
    for node in ast.walk(statement):  # what a statement names may be changed by it: `table[key] = value`, `x.append(y)`
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)


def _used(statement: ast.stmt) -> list[str]:
    """The names that a statement uses."""
    return [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
