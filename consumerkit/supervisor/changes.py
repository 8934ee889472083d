"""Watches Python files for changes, for which `consumerkit run --reload` restarts worker processes."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Final

from consumerkit.errors import StartError

_SETTLED: Final = 200
"""Milliseconds without a further change after which a change is reported: editors write, rename and format."""
_AT_MOST: Final = 2_000
"""Milliseconds after which a change is reported in any case."""
_NOT_OURS: Final = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})
_log = logging.getLogger(__name__)


def check_watchfiles() -> None:
    """Check that the library that watches files is installed.

    Raises:
        StartError: watchfiles is not installed.
    """
    try:
        import watchfiles  # noqa: F401
    except ImportError:
        raise StartError(
            "--reload needs watchfiles; install consumerkit[reload], such as: pip install 'consumerkit[reload]'"
        ) from None


async def python_changes(directories: Sequence[Path]) -> AsyncIterator[str]:
    """Yield a short text about each change of Python files below these directories.

    Files that are saved together yield one text. Hidden directories, environments and installed
    packages do not count.

    Raises:
        StartError: The directories cannot be watched.
    """
    from watchfiles import Change, awatch

    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it logs the number of changes, ignored ones included
    roots = [path for path in directories if not any(other != path and other in path.parents for other in directories)]

    def counts(_change: Change, path: str) -> bool:
        return path.endswith(".py") and any(_is_ours(Path(path), root) for root in roots)

    _log.info("Python files are watched in %s; --reload is for development", ", ".join(map(str, roots)))
    try:
        async for changes in awatch(*roots, watch_filter=counts, step=_SETTLED, debounce=_AT_MOST):
            yield told(Path(path) for _, path in changes)
    except (OSError, RuntimeError) as error:
        raise StartError(
            f"{error}; name the directories with your code by --reload-dir, or set WATCHFILES_FORCE_POLLING=1 where "
            "the file system reports no changes"
        ) from error


def told(paths: Iterable[Path]) -> str:
    """Return a short text about changed files: the relative path of the first, and the number of others.

    Example:
        >>> told([Path("shop/worker.py")]), told([Path("shop/b.py"), Path("shop/a.py")])
        ('shop/worker.py changed', 'shop/a.py and 1 more changed')
    """
    here = Path.cwd()
    from_here = [path.relative_to(here) if here in path.parents else path for path in paths]
    first, *others = sorted(from_here, key=lambda path: (path.is_absolute(), path))
    return f"{first} and {len(others)} more changed" if others else f"{first} changed"


def _is_ours(path: Path, root: Path) -> bool:
    """Tell whether a file below a root is the user's own; only the path below the root counts."""
    if root not in path.parents:
        return False
    return not any(part.startswith(".") or part in _NOT_OURS for part in path.relative_to(root).parts)
