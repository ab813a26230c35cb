"""What all commands share: the application, its errors, common options and how results are printed."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer
import typer.core
from rich.console import Console, ConsoleDimensions
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text
from typer.models import CommandFunctionType

from nar_hw._version import __version__
from nar_hw.cli.grid import Grid
from nar_hw.cli.values import MOST_BATCH, MOST_CLASSES, MOST_SEED, MOST_THREADS, choice, whole
from nar_hw.errors import NarError, UserError, printable
from nar_hw.models import EMBEDDING
from nar_hw.runtimes import PRECISIONS, RUNTIMES
from nar_hw.runtimes.config import THREADS_PER_CORE

if TYPE_CHECKING:
    from nar_hw.latency.kit import Plan
    from nar_hw.models.info import ModelInfo
    from nar_hw.space.flops import Counts

# Everything that needs torch is imported inside the command that uses it: --help answers at once.


UNBOUNDED = 10_000
"""Columns of what is no terminal."""

WHAT, WHERE, LONG, WRITTEN, FINE = "What", "Where it runs", "How long", "Results", "Fine tuning"
"""Groups of options in --help."""


class Plain(Console):
    """Prints texts as they are: names and paths of users may hold what rich takes for markup, or what terminals obey."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    @property
    def size(self) -> ConsoleDimensions:
        """Of the terminal; into files and pipes lines are as long as they are."""
        size = super().size
        return size if self.is_terminal or "COLUMNS" in os.environ else ConsoleDimensions(UNBOUNDED, size.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        Console.size.fset(self, new_size)  # type: ignore[attr-defined]

    def render_str(self, text: str, **options: Any) -> Text:
        """The text, line by line."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)


console = Plain()
errors = Plain(stderr=True)
_debug = False
_results: TextIO = sys.stdout
"""Where results go."""


GROUPS = {
    "Start here": ("demo", "refine", "sweep", "report"),
    "Look": ("doctor", "space", "count", "eval", "classify", "ensemble"),
    "Step by step": ("profile", "search", "train", "export", "bench"),
    "Tables, bundles, data": ("table", "bundle", "data", "proxy"),
}
"""Heading in --help -> its commands, in the order in which a newcomer needs them."""

UsageError: type[Any] = typer.BadParameter.__mro__[1]
"""A line that is no command (of typer's own click, or of click)."""


def write_options(command: Any, ctx: Any, formatter: Any) -> None:
    """Write a command's options in their groups, two columns that fit into 80."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        if (record := parameter.get_help_record(ctx)) is not None:
            usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
            groups.setdefault(getattr(parameter, "rich_help_panel", None) or usual, []).append(record)
    for name in ("Arguments", WHAT, WHERE, LONG, FINE, WRITTEN, "Options"):
        if name in groups:
            with formatter.section(name):
                formatter.write_dl(groups[name])


def summary(command: Any) -> str:
    """The first sentence of a command's help."""
    return str(command.get_short_help_str(1000))


class Commands(typer.core.TyperGroup):
    """Errors in one line and exit code 2; --debug anywhere shows the traceback instead."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order in which a newcomer needs them."""
        return [name for names in GROUPS.values() for name in names]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options and the commands, in their groups."""
        write_options(self, ctx, formatter)
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, summary(self.commands[name])) for name in names])

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the line; what is no command is one line, too."""
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
            else:
                words = " ".join(error.format_message().split()).rstrip(".")
                say(f"{words}: see {error.ctx.command_path if error.ctx else 'nar-hw'} --help")
            code = 2
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (NarError, OSError) as error:
            if _debug or isinstance(error, BrokenPipeError):
                raise
            say(_one_line(error))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            errors.print("nar-hw: stopped; what was finished is kept, and --resume goes on", style="yellow")
            raise typer.Exit(130) from None


class Group(typer.core.TyperGroup):
    """The commands of one kind."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options in their groups, and the commands."""
        write_options(self, ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary(command)) for name, command in self.commands.items()])


class Command(typer.core.TyperCommand):
    """Only results go to stdout: what users' networks and libraries print while it runs goes to stderr."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options in their groups."""
        write_options(self, ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        global _results
        _results = sys.stdout
        with redirect_stdout(sys.stderr):
            return super().invoke(ctx)


def say(problem: str) -> None:
    """Print what is wrong, in one line."""
    errors.print(f"nar-hw: {problem}", style="red", soft_wrap=True)


class App(typer.Typer):
    """Commands of our class, with help in plain text."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            no_args_is_help=True, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]}, **options
        )

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


app = App(cls=Commands, pretty_exceptions_enable=False)
table_app = App(cls=Group)
app.add_typer(table_app, name="table", help="Look at latency tables, check them against the device, predict with them.")
bundle_app = App(cls=Group)
app.add_typer(bundle_app, name="bundle", help="Check bundles on this machine, make Triton models of them.")

Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NETWORK",
        help="Our name, a torchvision name, timm:NAME, path/to/file.py:function or package.module:function.",
        rich_help_panel=WHAT,
    ),
]
OptionalModel = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NETWORK", help="As in other commands; not needed with a finished search.", rich_help_panel=WHAT
    ),
]
Input = Annotated[str, typer.Option("--input", metavar="CxHxW", help="Shape of one image.", rich_help_panel=WHAT)]
Manner = Annotated[
    Literal["conv", "block"],
    typer.Option(help="One slot per convolution (conv) or per residual block (block).", rich_help_panel=WHAT),
]
Operators = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Names or path/to/file.py:function to choose from, separated by commas; default: all that suit.",
        rich_help_panel=WHAT,
    ),
]
Slots = Annotated[
    str | None,
    typer.Option(
        metavar="GLOB",
        help="Over the convolutions to search, like 'layer[34].*'; default: all behind the stem.",
        rich_help_panel=WHAT,
    ),
]
LimitParams = Annotated[
    bool,
    typer.Option(
        "--limit-params/--no-limit-params",
        help="Only operators with no more parameters than the network's own.",
        rich_help_panel=WHAT,
    ),
]
Classes = Annotated[
    int | None,
    whole(
        "--classes",
        f"Outputs of the network; default: {EMBEDDING} of lresnet*_ir (an embedding), else 10 up to 64 pixels, 1000 above.",
        1,
        MOST_CLASSES,
        panel=WHAT,
    ),
]
DATA_HELP = (
    "digits, cifar10, cifar100, fashion-mnist, {folder,stream,faces}:PATH, fake:CxHxWxclasses, or your own task: "
    "path/to/file.py:function."
)
Data = Annotated[str, typer.Option("--data", "--task", metavar="DATA", help=DATA_HELP, rich_help_panel=WHAT)]
OptionalData = Annotated[
    str | None,
    typer.Option(
        "--data", "--task", metavar="DATA", help="As in other commands; not needed with a finished search.", rich_help_panel=WHAT
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where downloaded data sets are; default: $NAR_HW_DATA or .data.", rich_help_panel=FINE),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=WRITTEN)]
Seed = Annotated[int, whole("--seed", "Decides everything random.", 0, MOST_SEED, panel=FINE)]
RuntimeName = Annotated[
    str,
    choice(
        "--runtime",
        "Inference runtime; `nar-hw doctor` says which work here.",
        "runtime",
        RUNTIMES,
        panel=WHERE,
        hidden=("fake",),
    ),
]
Precision = Annotated[str, choice("--precision", "Of the inference.", "precision", PRECISIONS, panel=WHERE)]
Batch = Annotated[int, whole("--batch", "Images per inference.", 1, MOST_BATCH, panel=WHERE)]
Threads = Annotated[
    int,
    whole("--threads", f"CPU threads of one inference, at most {THREADS_PER_CORE} a core.", 1, MOST_THREADS, panel=WHERE),
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:<index>.", rich_help_panel=WHERE)]
TrainDevice = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="Where to train and score: cpu or cuda.", rich_help_panel=WHERE)
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Another setting; once for each. Lists have commas.",
        rich_help_panel=FINE,
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from what was kept.", rich_help_panel=LONG)]
Out = Annotated[Path, typer.Option(metavar="FOLDER", help="Where everything is written.", rich_help_panel=WRITTEN)]
AllowMismatch = Annotated[bool, typer.Option("--allow-mismatch", help="Use a table of another device.", rich_help_panel=FINE)]
Baseline = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Of a trained network, instead of --weights.", rich_help_panel=WHAT)
]
Kit = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Measure nothing here; write what a device without nar_hw needs.", rich_help_panel=WRITTEN
    ),
]
RuntimeVersion = Annotated[
    str | None,
    typer.Option(metavar="VERSION", help="With --kit or --ssh: the runtime's version on the device.", rich_help_panel=WHERE),
]
SshHost = Annotated[
    str | None,
    typer.Option("--ssh", metavar="HOST", help="Measure on this machine by ssh, without nar_hw there.", rich_help_panel=WHERE),
]
SshPython = Annotated[
    str, typer.Option("--ssh-python", metavar="PATH", help="With --ssh: Python on that machine.", rich_help_panel=WHERE)
]
TimesFile = Annotated[
    Path | None,
    typer.Option("--from", metavar="FILE", help="times.json (or times.txt) that a kit's device wrote.", rich_help_panel=WHAT),
]
Tensorboard = Annotated[bool, typer.Option("--tensorboard", help="Write scalars to OUT/tensorboard.", rich_help_panel=WRITTEN)]


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
    app(arguments, prog_name="nar-hw")


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
    from nar_hw.models import usual_outputs
    from nar_hw.models.info import ModelInfo, parse_shape

    shape = parse_shape(input)
    return ModelInfo(
        name=model,
        input_shape=shape,
        num_classes=classes or usual_outputs(model, shape),
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


def emit_kit(as_json: bool, kit: Path, plan: "Plan", what: str, command: str, **counts: int) -> None:
    """Say that a kit with ``what`` is written, and what to do with it before ``command``; ``counts`` are for JSON."""
    start, back = ("sh measure.sh", "times.txt") if (kit / "measure.sh").exists() else ("python measure.py", "times.json")
    line = (
        f"{kit}: {what}, for {plan.config.runtime} {plan.runtime_version}. Copy it to the device, run `{start}` there, "
        f"and bring {back} back to nar-hw {command} --from"
    )
    value = {"kit": str(kit), "runtime_version": plan.runtime_version, **counts}
    emit(as_json, value, lambda: console.print(line, soft_wrap=True))


def grid(titles: Iterable[str], rows: Iterable[Sequence[str]]) -> Grid:
    """A table that never cuts what is in it."""
    return Grid(tuple(titles), [tuple(map(printable, row)) for row in rows])


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
