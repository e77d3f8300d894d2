"""What every command line shares: errors in one line, flags with the same words, results as JSON."""

import _thread
import json
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console

from sparsekit.atomic import write_text
from sparsekit.errors import DivergedError, InputError, RunError

INTERRUPTED = 130
_EXTRAS = dict.fromkeys(("dask", "distributed", "joblib", "pandas", "pyarrow"), "analysis")  # what brings them

Number = TypeVar("Number", int, float)

Out = Annotated[Path | None, typer.Option("--out", help="Folder to write to (default: a new one in runs/).")]
Json = Annotated[Path | None, typer.Option("--json", help="File to write the results to, as one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors, and show no progress bar.")]


def run_app(app: typer.Typer) -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2, never a traceback."""
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _pass_interrupts_on
    try:
        code = app(standalone_mode=False) or 0
        if code == INTERRUPTED:  # Typer turns Ctrl-C into this code without a word
            fail("interrupted", INTERRUPTED)
        sys.exit(code)
    except InputError as error:
        fail(error, 2)
    except (DivergedError, RunError) as error:
        fail(error, 1)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        fail(f"{error.name} is not installed; get it by: pip install 'sparsekit[{_EXTRAS[error.name]}]'", 2)
    except MemoryError as error:
        fail(f"not enough memory: {error}", 1, notes_of=error)
    except (KeyboardInterrupt, typer.Abort):
        fail("interrupted", INTERRUPTED)
    except OSError as error:
        fail(error, 1)
    except Exception as error:
        message = getattr(error, "format_message", None)
        if message is None:  # not a usage error of the command-line library: a bug
            raise
        if not message():  # no command was named; the help is printed already
            sys.exit(2)
        fail(message(), 2)


def _pass_interrupts_on(unraisable: "sys.UnraisableHookArgs") -> None:
    """Ctrl-C in a function that C code has called is dropped, as while a kernel is compiled: send it again."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(0.05, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(unraisable)


def fail(message: object, code: int, notes_of: object = None) -> NoReturn:
    """Print one line, with what was noted on the error on its way."""
    line = " ".join("; ".join([str(message), *getattr(notes_of or message, "__notes__", [])]).split())
    print(f"sparsekit: error: {line}", file=sys.stderr)
    sys.exit(code)


def show_progress(quiet: bool) -> bool:
    """Bars are for terminals; in a log file every refresh would be a line of its own."""
    return not quiet and sys.stderr.isatty()


def numbers(name: str, text: str, kind: type[Number]) -> list[Number]:
    """The numbers in 'A,B,...'."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{name} must be numbers separated by commas, not {text!r}") from None


def new_folder(name: str) -> Path:
    """runs/NAME, or runs/NAME-2, -3, ... where that exists."""
    folder = Path("runs") / name
    number = 2
    while folder.exists():
        folder = Path("runs") / f"{name}-{number}"
        number += 1
    return folder


def check_json(path: Path | None) -> None:
    """Refuse a place that cannot be written to before hours of training, not after."""
    if path and (not path.absolute().parent.is_dir() or (path.exists() and not path.is_file())):
        raise InputError(f"json must name a file in a folder that exists, not {path}")


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write the results where --json says, if it is given."""
    if path:
        write_text(path, json.dumps(result, indent=2) + "\n")


def console() -> Console:
    """As wide as the table needs where the output is a file or a pipe."""
    return Console() if sys.stdout.isatty() else Console(width=200)
