"""The target of a command: `module:attribute`, from which a `Worker` is loaded."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Annotated, Any, Final

import typer

from consumerkit.cli import typed
from consumerkit.errors import ConfigurationError, ConsumerkitError
from consumerkit.observability.shown_errors import in_full
from consumerkit.observability.user_code import frames_of
from consumerkit.redaction.plain_words import is_plain, shown_word
from consumerkit.redaction.text import redact
from consumerkit.worker import Worker

VARIABLE = "CONSUMERKIT_APP"
TargetArgument = Annotated[
    str | None,
    typer.Argument(metavar="TARGET", envvar=VARIABLE, help="The worker, as module:attribute.", show_default=False),
]
# What Python can import and find; errors quote a target only if it has this form.
_FORM: Final = re.compile(r"[\w-]{1,100}(?:\.[\w-]{1,100}){0,20}:[\w-]{1,100}(?:\.[\w-]{1,100}){0,20}")
_PATH: Final = re.compile(r"(?:\.?/)?(?:[\w-]{1,100}/){0,20}[\w-]{1,100}\.py(?::\w{1,100})?")
_KINDS = "a Worker, a callable that returns one, or an async context manager that yields one"


class TargetBroken(ConfigurationError):
    """The target's own code raised an error; its text may have several lines."""

    has_lines = True


@asynccontextmanager
async def opened(target: str) -> AsyncIterator[Worker]:
    """Load a target, and yield its worker, not started, until the block ends.

    The attribute is a `Worker`, an async context manager that yields one, or a callable without
    arguments, plain or async, that returns one of these. Its resources are open within the block.

    Args:
        target: `module:attribute`; the working directory is searched for the module first.

    Raises:
        ConfigurationError: The name does not exist, or leads to no `Worker`.
    """
    found = await _called(load(target), target)
    if isinstance(found, AbstractAsyncContextManager) and not isinstance(found, Worker):
        async with AsyncExitStack() as stack:
            try:
                yielded = await stack.enter_async_context(found)
            except ConsumerkitError:
                raise
            except Exception as error:  # noqa: BLE001 - as for an import
                raise _broken(target, error) from None
            yield _checked(yielded, target)
    else:
        yield _checked(found, target)


def given(target: str | None) -> str:
    """Return the target from the command line or from `CONSUMERKIT_APP`.

    Raises:
        ConfigurationError: No target is given.
    """
    if not target:
        raise ConfigurationError(
            f"no worker is named; give module:attribute, such as shop.worker:worker, or set {VARIABLE}"
        )
    return target


def check_form(target: str) -> None:
    """Refuse a target that cannot name a worker.

    Raises:
        ConfigurationError: The target is not of the form `module:attribute`.
    """
    if not _FORM.fullmatch(target) or target.partition(":")[0].endswith(".py"):
        raise ConfigurationError(f"target {shown_word(target)}: write module:attribute, such as {_suggestion(target)}")


def search_here() -> None:
    """Put the working directory first in the search path of modules."""
    directory = os.getcwd()  # noqa: PTH109 - sys.path holds text
    if directory not in sys.path:
        sys.path.insert(0, directory)


def load(target: str) -> Any:
    """Return the object that `module:attribute` names.

    Raises:
        ConfigurationError: There is no such module or attribute, or importing the module failed.
    """
    check_form(target)
    module_name, _, path = target.partition(":")
    search_here()
    found = _imported(module_name, target)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            hint = _did_you_mean(name, [known for known in dir(found) if not known.startswith("_")])
            raise ConfigurationError(f"target {target!r}: {module_name} has no attribute {name!r}{hint}") from None
    return found


def _imported(module_name: str, target: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise _broken(target, error) from None
        parent, _, last = missing.rpartition(".")
        hint = _did_you_mean(last, _siblings(parent))
        raise ConfigurationError(
            f"target {target!r}: there is no module {missing!r} here or among the installed packages{hint}"
        ) from None
    except ConsumerkitError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - its traceback may quote a secret; it becomes one line
        raise _broken(target, error) from None


async def _called(found: Any, target: str) -> Any:
    """Call a factory, and await its result if needed."""
    if isinstance(found, type) and issubclass(found, Worker):
        raise ConfigurationError(f"target {target!r} is the class {found.__name__}; name {_KINDS}")
    if not isinstance(found, Worker | AbstractAsyncContextManager) and callable(found):
        try:
            found = found()
            if inspect.isawaitable(found):
                found = await found
        except ConsumerkitError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            raise _broken(target, error) from None
    return found


def _checked(found: Any, target: str) -> Worker:
    if isinstance(found, Worker):
        return found
    if inspect.isasyncgen(found):
        raise ConfigurationError(
            f"target {target!r} is a bare async generator; put @contextlib.asynccontextmanager above its def"
        )
    raise ConfigurationError(f"target {target!r} leads to a value of type {type(found).__name__}; name {_KINDS}")


def _broken(target: str, error: BaseException) -> ConfigurationError:
    """Describe an error in the user's own code: its type, its text and its line."""
    frames = frames_of(error)
    inner = next((frame for frame in reversed(frames) if frame.is_theirs), None)
    place = f" ({inner.filename}:{inner.line})" if inner is not None else ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}:{error.lineno})"
    what = redact(str(error.msg if isinstance(error, SyntaxError) else error))
    if any(frame.filename.endswith("sqlalchemy/engine/url.py") for frame in frames):
        # SQLAlchemy's error quotes the port, where part of an unescaped password ends up.
        what = "it is not a URL of a database"
    first, *more = what.splitlines() or [""]
    lines = [f"target {target!r}: {type(error).__name__}: {first}{place}", *(f"  {line}" for line in more)]
    if typed.wants_traceback():
        lines += in_full(error, f"{type(error).__name__}: {first}").splitlines()
    return TargetBroken("\n".join(lines))


def _suggestion(target: str) -> str:
    if not is_plain(target) and not _PATH.fullmatch(target):
        return "shop.worker:worker"  # the target may be a URL with its password
    module, _, attribute = target.partition(":")
    module = module.removesuffix(".py").strip("./").replace("/", ".") or "shop.worker"
    return f"{module}:{attribute or 'worker'}"


def _siblings(parent: str) -> Iterable[str]:
    """Return the modules in the working directory or in the package, for a suggestion."""
    try:
        paths = list(importlib.import_module(parent).__path__) if parent else [os.getcwd()]  # noqa: PTH109
    except (ImportError, AttributeError):
        return ()
    return [module.name for module in pkgutil.iter_modules(paths)]


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
