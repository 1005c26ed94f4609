"""Import the code that a user named: a file alone, a file as the member of its package, a module by its dotted name.

While the code is imported its package's root comes first on the path, as for a script; afterwards the root comes last,
for what the code imports when it runs.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from compressor.checkpoint.code.definitions import digest_of
from compressor.checkpoint.code.trust import Trusted
from compressor.errors import ArchitectureError, CheckpointError

IMPORTED = "_compress_sha256"  # attribute of a module: the hash of the file that was imported


@contextlib.contextmanager
def importable(first: Sequence[Path] = (), last: Sequence[Path] = ()) -> Iterator[None]:
    """Put folders first, or last, on the path of imports; after the block all of them come last.

    What the imported code prints goes to stderr: stdout has data alone.
    """
    before = list(sys.path)
    ahead = [str(folder) for folder in first]
    sys.path[:] = [*ahead, *(p for p in before if p not in ahead), *(str(p) for p in last if str(p) not in before)]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        added = [p for p in sys.path if p not in before]
        sys.path[:] = [*before, *dict.fromkeys(added)]


def trusted_file(file: Path, name: str) -> Trusted:
    """Return the entry of a file that the user names.

    It imports from its package's root, and from the working folder if it lies below that.
    """
    here = Path.cwd()
    roots = [_member(file)[0], *[here] * file.is_relative_to(here)]
    code = digest_of(file, name)
    return Trusted(ref=f"{file}:{name}", file=file, roots=tuple(dict.fromkeys(roots)), code=code)


def trusted_module(source: str, name: str) -> Trusted:
    """Return the entry of a module that the user names, and import it. Refused: it cannot be imported.

    A module in the working folder comes after an installed one of its name.
    """
    here, top = Path.cwd(), source.partition(".")[0]
    is_here = (here / top).is_dir() or (here / f"{top}.py").is_file()
    roots = (here,) if is_here and not _is_installed(top) else ()
    place = getattr(import_module(source, roots), "__file__", None) if source != "__main__" else None
    file = None if place is None else Path(place).resolve()
    return Trusted(ref=f"{source}:{name}", file=file, roots=roots, code=None if file is None else digest_of(file, name))


def _is_installed(top: str) -> bool:
    """True if a module lies where Python's own and installed packages lie."""
    if top in sys.stdlib_module_names:
        return True
    folders = [sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")]
    return importlib.machinery.PathFinder.find_spec(top, folders) is not None


def import_module(source: str, roots: Sequence[Path]) -> ModuleType:
    """Return the module with a dotted name, which lies in the first of `roots`, if there is one.

    Refused: it cannot be imported.
    """
    try:
        with importable(first=roots):
            return _imported(source, roots[0]) if roots else importlib.import_module(source)
    except ImportError as error:
        raise ArchitectureError(
            f"cannot import `{source}`: {error}",
            hint="is it installed? else run in the folder that it lies in, or name its file: `--arch pkg/net.py:Net`",
        ) from error
    except Exception as error:
        # the user's own code may raise anything; the traceback stays attached
        raise ArchitectureError(
            f"`{source}` does not run: {type(error).__name__}: {error}", hint="import it on its own and repair it"
        ) from error


def import_file(file: Path, roots: Sequence[Path]) -> ModuleType:
    """Return the module in a Python file: as the member of its package, if it has one below `roots`.

    Refused: a missing file, one that does not run.
    """
    if not file.is_file():
        raise ArchitectureError(f"there is no file {file}", hint="check the path in `--arch`")
    root, name = _member(file)
    try:
        with importable(first=roots):
            if "." in name and root in roots:
                with contextlib.ExitStack() as stack:
                    if not _levels(file):  # it may run alone where its package does not
                        stack.enter_context(contextlib.suppress(Exception))
                    return _imported(name, root)
            return _executed(file, file.stem)
    except Exception as error:
        # the user's own code may raise anything; the traceback stays attached
        hint = "run it on its own and repair it"
        if isinstance(error, ImportError):
            hint = "run in the folder from which it is imported, or install what it needs"
        raise ArchitectureError(f"{file} does not run: {type(error).__name__}: {error}", hint=hint) from error


def _imported(name: str, root: Path) -> ModuleType:
    """The module with a dotted name at `root`; imported again if its file was changed since."""
    top = name.partition(".")[0]
    known = sys.modules.get(top)
    if known is not None and not _lies_in(known, root):
        if _is_installed(top):
            raise ImportError(f"`{root / top}` has the name of an installed package: rename it")
        _forget(top)
    if getattr(sys.modules.get(name), IMPORTED, None) not in (None, _digest(sys.modules.get(name))):
        _forget(top)
    module = importlib.import_module(name)
    setattr(module, IMPORTED, _digest(module))
    return module


def _digest(module: ModuleType | None) -> str | None:
    """The hash of a module's file as it is now; `None` without a file."""
    file = getattr(module, "__file__", None)
    return sha256_of_code(Path(file)) if file is not None and Path(file).is_file() else None


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """True if the module's file, or a package's folder, stands in the folder."""
    places = getattr(module, "__path__", None) or [getattr(module, "__file__", None)]
    return any(Path(place).resolve().parent == folder.resolve() for place in places if place)


def _forget(top: str) -> None:
    """Let the package be imported again."""
    for name in [n for n in sys.modules if n == top or n.startswith(f"{top}.")]:
        del sys.modules[name]


def _executed(file: Path, name: str) -> ModuleType:
    """The module of a file alone."""
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module


def _member(file: Path) -> tuple[Path, str]:
    """The root of a file's package and its dotted name there; its own folder and stem if it is in no package.

    A folder is a package if it has an `__init__.py`, or if the file imports relatively from that far up.
    """
    levels = _levels(file)
    parts = [] if file.stem == "__init__" else [file.stem]
    folder, depth = file.parent, 0
    while (folder / "__init__.py").is_file() or depth < levels:
        if not folder.name.isidentifier():
            break
        parts.insert(0, folder.name)
        folder, depth = folder.parent, depth + 1
    if not parts or not all(part.isidentifier() for part in parts):
        return file.parent, file.stem
    return folder, ".".join(parts)


def _levels(file: Path) -> int:
    """The largest number of dots before a relative import in the file."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return 0  # importing it says what is wrong
    return max((node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=0)


def sha256_of_code(file: Path) -> str:
    """Return the hash of a file of code. Refused: it cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}", hint="check its permissions") from error
