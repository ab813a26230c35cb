"""What all commands share: the application, its errors, common options and how results are printed."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer
import typer.core
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text
from typer.models import CommandFunctionType

from nar_hw._version import __version__
from nar_hw.cli.values import MOST_BATCH, MOST_CLASSES, MOST_SEED, MOST_THREADS, whole
from nar_hw.errors import NarError, UserError, printable
from nar_hw.runtimes.config import THREADS_PER_CORE

if TYPE_CHECKING:
    from nar_hw.models.info import ModelInfo
    from nar_hw.space.flops import Counts

# Everything that needs torch is imported inside the command that uses it: --help answers at once.


class Plain(Console):
    """Prints texts as they are: names and paths of users may hold what rich takes for markup, or what terminals obey."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text, line by line."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)


console = Plain()
errors = Plain(stderr=True)
_debug = False
_results: TextIO = sys.stdout
"""Where results go."""


ORDER = (
    "demo",
    "refine",
    "doctor",
    "space",
    "count",
    "profile",
    "table",
    "data",
    "proxy",
    "search",
    "train",
    "eval",
    "export",
    "bundle",
    "bench",
    "report",
)


class Commands(typer.core.TyperGroup):
    """Errors in one line and exit code 2; --debug anywhere shows the traceback instead."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order in which a newcomer needs them."""
        return sorted(self.commands, key=ORDER.index)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (NarError, OSError) as error:
            if _debug or isinstance(error, BrokenPipeError):
                raise
            errors.print(f"nar-hw: {_one_line(error)}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            errors.print("nar-hw: stopped; what was finished is kept, and --resume goes on", style="yellow")
            raise typer.Exit(130) from None


class Command(typer.core.TyperCommand):
    """Only results go to stdout: what users' networks and libraries print while it runs goes to stderr."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        global _results
        _results = sys.stdout
        with redirect_stdout(sys.stderr):
            return super().invoke(ctx)


class App(typer.Typer):
    """Commands of our class."""

    def command(  # type: ignore[override]  # of its options we use the name only
        self, name: str | None = None
    ) -> Callable[[CommandFunctionType], CommandFunctionType]:
        """Register a command."""
        return super().command(name, cls=Command)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror is not None:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where} (is the disk full, or the folder read-only?)"
    return " ".join(str(error).split())


app = App(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
table_app = App(no_args_is_help=True)
app.add_typer(table_app, name="table", help="Look at latency tables, check them against the device, predict with them.")
bundle_app = App(no_args_is_help=True)
app.add_typer(bundle_app, name="bundle", help="Check bundles on this machine, make Triton models of them.")

Model = Annotated[
    str,
    typer.Option("--model", help="Our name, a torchvision name, timm:NAME, path/to/file.py:function or package.module:function."),
]
OptionalModel = Annotated[str | None, typer.Option("--model", help="As in other commands; not needed with a finished search.")]
Input = Annotated[str, typer.Option("--input", help="Shape of one image: CxHxW.")]
Manner = Annotated[Literal["conv", "block"], typer.Option(help="One slot per convolution (conv) or per residual block (block).")]
Operators = Annotated[
    str | None,
    typer.Option(help="Names or path/to/file.py:function to choose from, separated by commas; default: all that suit."),
]
Slots = Annotated[
    str | None, typer.Option(help="Glob over the convolutions to search, like 'layer[34].*'; default: all behind the stem.")
]
LimitParams = Annotated[
    bool, typer.Option("--limit-params/--no-limit-params", help="Only operators with no more parameters than the network's own.")
]
Classes = Annotated[
    int | None, whole("--classes", "Outputs of the network; default: 10 up to 64 pixels, else 1000.", 1, MOST_CLASSES)
]
Data = Annotated[
    str,
    typer.Option("--data", help="digits, cifar10, cifar100, fashion-mnist, {folder,stream,faces}:PATH or fake:CxHxWxclasses."),
]
OptionalData = Annotated[str | None, typer.Option("--data", help="As in other commands; not needed with a finished search.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of downloaded data sets; default: $NAR_HW_DATA or .data.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Seed = Annotated[int, whole("--seed", "Decides everything random.", 0, MOST_SEED)]
RuntimeName = Annotated[str, typer.Option("--runtime", help="Inference runtime; `nar-hw doctor` lists those that work here.")]
Precision = Annotated[str, typer.Option(help="fp32, fp16, bf16 or int8.")]
Batch = Annotated[int, whole("--batch", "Images per inference.", 1, MOST_BATCH)]
Threads = Annotated[int, whole("--threads", f"CPU threads of one inference, at most {THREADS_PER_CORE} a core.", 1, MOST_THREADS)]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:<index>.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Another setting, as name=value; once for each. Lists have commas.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from what was kept.")]


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Make a trained CNN fit your device: measured latency tables, operator search under a target, deployable bundles."""
    global _debug
    _debug = debug


def main() -> None:
    """The entry point."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        sys.stdout.write(f"nar-hw {__version__}\n")
        return
    if "--debug" in arguments:  # accepted anywhere on the line, since it is added after a failure
        arguments = ["--debug", *(argument for argument in arguments if argument != "--debug")]
    _keep_stdout()
    app(arguments)


def _keep_stdout() -> None:
    """Let what programs and C libraries write to descriptor 1 go to stderr, and only `sys.stdout` where results go."""
    if sys.stdout is not sys.__stdout__ or not isinstance(sys.stdout, io.TextIOWrapper):  # somebody has put another in its place
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(kept, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, buffering=1)


def model_info(
    model: str,
    input: str,
    manner: Literal["conv", "block"],
    operators: str | None,
    classes: int | None,
    slots: str | None = None,
    limit_params: bool = True,
) -> "ModelInfo":
    """What the options --model, --input, --manner, --operators, --classes, --slots and --limit-params describe."""
    from nar_hw.models.info import ModelInfo, parse_shape

    shape = parse_shape(input)
    return ModelInfo(
        name=model,
        input_shape=shape,
        num_classes=classes or (10 if max(shape[1:]) <= 64 else 1000),
        manner=manner,
        operators=names(operators),
        slots=slots,
        limit_params=limit_params,
    )


def names(operators: str | None) -> tuple[str, ...] | None:
    """The operators of --operators."""
    return None if operators is None else tuple(name.strip() for name in operators.split(","))


def counted(counts: "Counts") -> dict[str, int]:
    """Counts for JSON."""
    return {key: getattr(counts, key) for key in ("params", "flops", "pool_ops")}


def sentence(counts: dict[str, Any]) -> str:
    """Counts in words."""
    if counts["flops"] is None:
        return f"{counts['params']:,} parameters, FLOPs could not be counted"
    return f"{counts['params']:,} parameters, {counts['flops']:,} FLOPs (multiply-adds), {counts['pool_ops']:,} pool operations"


def emit(as_json: bool, value: dict[str, Any], show: Callable[[], None]) -> None:
    """Print the one JSON object, or let ``show`` print for people."""
    with redirect_stdout(_results):
        if as_json:
            sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
        else:
            show()


@contextmanager
def output_files(*paths: Path | None) -> Iterator[None]:
    """Keep files that a long measurement ends in to this process. Raises UserError, or OSError, where they cannot be written."""
    from nar_hw.locks import writing

    with ExitStack() as stack:
        for path in filter(None, paths):
            if not path.name or path.is_dir():
                raise UserError(f"the output must be a file, but {str(path)!r} is a folder: add a name")
            stack.enter_context(writing(path, whole=True))
        yield


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Bars on stderr."""
    columns = (
        TextColumn(
            "{task.description}", markup=False, table_column=Column(max_width=max(30, errors.width - 38), overflow="fold")
        ),
        BarColumn(bar_width=14),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=9)),
        TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
    )
    with Progress(*columns, console=errors) as progress:
        yield progress
