"""The command line: parse, call one function, print. Nothing heavy is imported at module level."""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.errors import BoardfitError

app = typer.Typer(
    name="boardfit",
    help="Fit a neural network to a board, and prove it by measurement.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
boards_app = typer.Typer(help="The boards that boardfit knows, and whom to trust.")
app.add_typer(boards_app, name="boards")

INTERRUPTED = 130
INTERRUPTED_MESSAGE = "interrupted; what was measured is kept, and the same command resumes"

BoardOption = Annotated[
    str, typer.Option("--board", help="A board of boards.toml, or local: this computer.")
]
TableOption = Annotated[
    Path | None,
    typer.Option("--table", help="A measurement table (CSV) instead of a board."),
]
RuntimeOption = Annotated[
    str | None, typer.Option("--runtime", help="The runtime of --table; else the profile's.")
]
ProfileOption = Annotated[
    str | None, typer.Option("--profile", help="The board profile that --table starts from.")
]
CoverageOption = Annotated[
    float, typer.Option("--coverage", min=0.5, max=0.99, help="Coverage of the intervals.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DataOption = Annotated[
    Path, typer.Option("--data", help="An .npz with train and test images and labels.")
]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="The trained weights: a state dict.")
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Exit with 1 where a measurement is UNSTABLE; it is kept.")
]
ShapeOption = Annotated[
    str | None,
    typer.Option("--shape", help="The input's shape where NETWORK is a factory: 1,3,224,224."),
]


def main() -> None:
    """Run the command line; every error ends in one message and the exit code of its class."""
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:
            # Newer releases of typer answer Ctrl-C with this code, older ones raise.
            raise KeyboardInterrupt
    except BoardfitError as error:
        print(f"boardfit: {error}", file=sys.stderr)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort) as error:
        # Typer turns Ctrl-C into Abort, which it also raises where a question was answered no.
        declined = isinstance(error, typer.Abort) and error.__cause__ is None
        what = "nothing was changed" if declined else INTERRUPTED_MESSAGE
        print(f"boardfit: {what}", file=sys.stderr)
        code = INTERRUPTED
        # Ctrl-C inside code that a library compiled from a string is remembered by CPython, which
        # then ends `python -m` by the signal whatever the exit code; running such code clears it.
        exec("")
    except OSError as error:
        # A full disk, a file that may not be read, a name that is too long: no bug of ours.
        print(f"boardfit: {error}", file=sys.stderr)
        code = 1
    except Exception as error:
        code = _unexpected(error)
    sys.exit(code or 0)


def _unexpected(error: Exception) -> int:
    """Usage errors speak for themselves; anything else is our bug, and says so."""
    show = getattr(error, "show", None)
    if callable(show):
        show()
        return int(getattr(error, "exit_code", 2))
    if os.environ.get("BOARDFIT_DEBUG"):
        traceback.print_exc()
    print(
        f"boardfit: internal error: {type(error).__name__}: {error}\n"
        "This is a bug. BOARDFIT_DEBUG=1 shows where; please report it with the command.",
        file=sys.stderr,
    )
    return 1


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


@app.command()
def fit(
    network: Annotated[str, typer.Argument(help="module:factory or file.py:factory.")],
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="The result folder; rerunning resumes.")],
    board: BoardOption = "local",
    weights: WeightsOption = None,
    latency: Annotated[
        str | None, typer.Option("--latency", help="4ms, or 22% of the baseline's.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="1.5MB, or 20% of the baseline's file.")
    ] = None,
    max_drop: Annotated[
        float, typer.Option("--max-drop", help="Points of top-1 that may be lost.")
    ] = 1.0,
    methods: Annotated[
        str, typer.Option("--methods", help="prune, quantize, or both with a comma.")
    ] = "prune,quantize",
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Allocate and measure at most this often.")
    ] = 3,
    epochs: Annotated[
        int, typer.Option("--epochs", min=0, help="Epochs of distillation from the original.")
    ] = 4,
    seed: Annotated[int, typer.Option("--seed", help="Seed of everything random.")] = 0,
    alternatives: Annotated[
        bool, typer.Option(help="Also build and measure each method alone.")
    ] = True,
    sustain: Annotated[
        str | None,
        typer.Option(
            "--sustain",
            help="Run without a pause this long before the final verdict: 5min, or 0. "
            "2min if not given; 0 on local.",
        ),
    ] = None,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compress NETWORK until it meets the budget on the board, by measurement."""
    from harness import commands, profiling

    requested = commands.budgets(latency=latency, size=size, max_drop=max_drop)
    result = commands.fit(
        network,
        weights=weights,
        data=data,
        board=board,
        budgets=requested,
        methods=commands.methods(methods),
        rounds=rounds,
        epochs=epochs,
        seed=seed,
        alternatives=alternatives,
        out=out,
        sustain=sustain,
    )
    if as_json:
        print((out / "result.json").read_text())
    else:
        from harness.report import tables

        tables.print_fit(result, out / "report.html")
    if strict:
        profiling.require_valid_fit(result, out)
    raise typer.Exit(0 if result.verdict == "meets" else 4)


@app.command()
def profile(
    network: Annotated[str, typer.Argument(help="An .onnx file, or a factory with --shape.")],
    board: BoardOption = "local",
    weights: WeightsOption = None,
    shape: ShapeOption = None,
    warm_up: Annotated[
        float, typer.Option("--warm-up", "--warmUp", min=0, help="Warm up this long, in ms.")
    ] = 200.0,
    duration: Annotated[
        float, typer.Option("--duration", min=0, help="Measure at least this long, in s.")
    ] = 3.0,
    iterations: Annotated[
        int | None,
        typer.Option(
            "--iterations",
            min=1,
            help="Measure at least this many calls; 64, or what --percentile needs.",
        ),
    ] = None,
    percentile: Annotated[
        float | None,
        typer.Option(
            "--percentile",
            min=0,
            max=100,
            help="A percentile to measure for; else p90 and p99 where there are enough calls.",
        ),
    ] = None,
    sustain: Annotated[
        str, typer.Option("--sustain", help="Run without a pause this long first: 5min.")
    ] = "0",
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Write a page with the plot of --sustain.")
    ] = None,
    strict: StrictOption = False,
    store: Annotated[
        Path, typer.Option("--store", help="The store that keeps the measurement.")
    ] = Path("boardfit.db"),
    export_times: Annotated[
        Path | None,
        typer.Option("--export-times", "--exportTimes", help="Write every call as trtexec does."),
    ] = None,
    export_profile: Annotated[
        Path | None,
        typer.Option("--export-profile", "--exportProfile", help="Write kernels as trtexec does."),
    ] = None,
    export_trace: Annotated[
        Path | None, typer.Option("--export-trace", help="Write a Chrome trace of one inference.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure NETWORK on the board, end to end and kernel by kernel."""
    from harness import commands, profiling, run_commands
    from harness.report import judged, plain, tables

    if plot is not None and sustain.strip() == "0":
        raise typer.BadParameter("--plot shows --sustain; give both")
    measurement, kernels = commands.profile(
        network,
        weights=weights,
        shape=shape,
        board=board,
        warm_up_s=warm_up / 1e3,
        duration_s=duration,
        iterations=iterations,
        store=store,
        percentile=percentile,
        sustain=sustain,
    )
    verdict = profiling.judge(measurement, percentile=percentile)
    soak = profiling.soaking(measurement)
    if plot is not None and soak is not None:
        judged.write_soak(measurement, soak, plot)
    run_commands.export(
        measurement, kernels, times=export_times, layers=export_profile, trace=export_trace
    )
    if as_json:
        _print_json(plain.profile_json(measurement, kernels, verdict=verdict, soak=soak))
    else:
        tables.print_profile(measurement, kernels, verdict=verdict, soak=soak)
    if strict:
        profiling.require_valid(network, verdict, kept=str(store))


@app.command()
def calibrate(
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder for the results; with --table, or the model's file."),
    ],
    board: BoardOption = "local",
    network: Annotated[
        Path | None, typer.Option("--network", help="Calibrate around this .onnx network.")
    ] = None,
    table: TableOption = None,
    runtime: RuntimeOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a latency model to kernels measured on the board, or to a table of networks."""
    from dataclasses import asdict

    from harness import commands
    from harness import tables as measured
    from harness.report import tables

    if table is not None:
        model, path = measured.calibrate(table, profile=profile, runtime=runtime, out=out)
        times = None
    else:
        found = commands.calibrate(board=board, network=network, out=out)
        model, path, times = found.model, out / "latency_model.json", found.times
    if as_json:
        measured_in = {} if times is None else {"times": asdict(times)}
        _print_json({**json.loads(model.to_json()), **measured_in})
    else:
        tables.print_latency_model(model, times, path)


@app.command()
def predict(
    latency_model: Annotated[
        Path, typer.Option("--latency-model", help="A file that boardfit calibrate wrote.")
    ],
    network: Annotated[Path | None, typer.Argument(help="An .onnx file.")] = None,
    table: TableOption = None,
    out: Annotated[
        Path, typer.Option("--out", help="The file for the predictions of --table.")
    ] = Path("predictions.csv"),
    coverage: CoverageOption = 0.9,
    precision: Annotated[
        str, typer.Option("--precision", help="NETWORK's precision: fp32, fp16 or int8.")
    ] = "fp32",
    batch: Annotated[int, typer.Option("--batch", min=1, help="NETWORK's batch.")] = 1,
    power_mode: Annotated[
        str | None, typer.Option("--power-mode", help="A power mode of the board's profile.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict NETWORK's latency kernel by kernel, or that of a table's rows, without a board."""
    from harness import commands
    from harness import tables as measured
    from harness.report import heldout, plain, tables

    if (table is None) == (network is None):
        raise typer.BadParameter("give either NETWORK or --table")
    if table is not None:
        rows = measured.predict(table, latency_model=latency_model, coverage=coverage, out=out)
        if as_json:
            _print_json(heldout.prediction_rows_json(rows))
        else:
            heldout.print_predictions(rows, out)
        return
    assert network is not None
    prediction = commands.predict(
        network,
        latency_model=latency_model,
        coverage=coverage,
        precision=precision,
        batch=batch,
        power_mode=power_mode,
    )
    if as_json:
        _print_json(plain.prediction_json(prediction))
    else:
        tables.print_prediction(prediction)


@app.command()
def validate(
    networks: Annotated[
        list[Path] | None, typer.Argument(help="ONNX files that calibration has not seen.")
    ] = None,
    board: BoardOption = "local",
    latency_model: Annotated[
        Path | None,
        typer.Option("--latency-model", help="Use this latency model; else calibrate first."),
    ] = None,
    int8: Annotated[
        bool, typer.Option(help="Also quantize each network and measure it in int8.")
    ] = True,
    table: TableOption = None,
    runtime: RuntimeOption = None,
    profile: ProfileOption = None,
    split: Annotated[
        int | None, typer.Option("--split", min=1, help="Calibrate on this many rows of --table.")
    ] = None,
    leave_out: Annotated[
        str | None, typer.Option("--leave-out", help="family, network or power_mode, one by one.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of --split.")] = 0,
    coverage: CoverageOption = 0.9,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for measurements, report and plots.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict networks that calibration never saw, and hold that against measurements of them."""
    from harness import commands
    from harness import tables as measured
    from harness.report import heldout, plain, tables

    if (table is None) == (not networks):
        raise typer.BadParameter("give either NETWORKS or --table")
    if table is not None:
        found = measured.validate(
            table,
            profile=profile,
            runtime=runtime,
            split=split,
            leave_out=leave_out,
            seed=seed,
            coverage=coverage,
            out=out,
        )
        if as_json:
            print(heldout.text_json(found.report, title=found.title))
        else:
            heldout.print_validation(found.report, title=found.title, folder=out)
        return
    rows = commands.validate(
        networks or (),
        board=board,
        latency_model=latency_model,
        int8=int8,
        out=out or Path("runs/validate"),
    )
    if as_json:
        _print_json(plain.validation_json(rows))
    else:
        tables.print_validation(rows)


@app.command()
def compare(
    run_a: Annotated[
        str,
        typer.Argument(
            help="A store, FILE#LABEL or FILE~1 (the one before), a result folder of fit, a "
            "printed profile, a trtexec log; or two .onnx files, measured interleaved now."
        ),
    ],
    run_b: Annotated[str, typer.Argument(help="The run that is held against RUN_A.")],
    fail_if_slower: Annotated[
        str | None,
        typer.Option("--fail-if-slower", help="Exit with 1 if B is slower by more: 3%."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 where --fail-if-slower cannot tell, too.")
    ] = False,
    may_differ: Annotated[
        list[str] | None,
        typer.Option("--may-differ", help="A field in which the runs may be unlike; repeatable."),
    ] = None,
    allow_unlike: Annotated[
        bool, typer.Option("--allow-unlike", help="Compare runs that are unlike in any field.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Show every kernel.")] = False,
    board: BoardOption = "local",
    duration: Annotated[
        float, typer.Option("--duration", min=0, help="Measure each of two networks so long, in s.")
    ] = 3.0,
    store: Annotated[
        Path, typer.Option("--store", help="The store that keeps what is measured.")
    ] = Path("boardfit.db"),
    as_json: JsonOption = False,
) -> None:
    """Hold RUN_B against RUN_A: in total, kernel by kernel, and what else changed."""
    from harness import differences, run_commands
    from harness.report import compare as printing

    limit = (
        None
        if fail_if_slower is None
        else run_commands.share(fail_if_slower, option="--fail-if-slower")
    )
    found = run_commands.compare(
        run_a,
        run_b,
        board=board,
        duration_s=duration,
        store=store,
        may_differ=may_differ or (),
        allow_unlike=allow_unlike,
    )
    outcome = None if limit is None else differences.judge(found.total, limit=limit)
    if as_json:
        _print_json(printing.comparison_json(found, limit=limit, outcome=outcome))
    else:
        printing.print_comparison(found, limit=limit, outcome=outcome, every=every)
    failed = outcome == "slower" or (strict and outcome == "cannot tell")
    raise typer.Exit(1 if failed else 0)


@app.command("import")
def import_logs(
    logs: Annotated[list[Path], typer.Argument(help="Logs that trtexec printed.")],
    store: Annotated[
        Path, typer.Option("--store", help="The store that keeps what is imported.")
    ] = Path("boardfit.db"),
    network: Annotated[
        Path | None, typer.Option("--network", help="The .onnx file that trtexec ran.")
    ] = None,
    times: Annotated[
        Path | None,
        typer.Option("--times", help="What --exportTimes wrote in the same run: single calls."),
    ] = None,
    layers: Annotated[
        Path | None, typer.Option("--layers", help="What --exportProfile wrote: kernels.")
    ] = None,
    board: Annotated[
        str | None, typer.Option("--board", help="The board's name; else the device's.")
    ] = None,
    power_mode: Annotated[
        str | None, typer.Option("--power-mode", help="The board's power mode, if known.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Keep what trtexec measured: the log's statistics, and single calls where there are any."""
    from harness import run_commands
    from harness.report import imports

    found = run_commands.import_logs(
        logs,
        store=store,
        network=network,
        times=times,
        profile=layers,
        board=board,
        power_mode=power_mode,
    )
    if as_json:
        _print_json(imports.imports_json(found))
    else:
        imports.print_imports(found, store=store)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A result folder of boardfit fit.")],
    allow_fake: Annotated[
        bool, typer.Option(help="Accept results that the fake engine made.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print a fit's result and write its report.html anew."""
    from harness import commands
    from harness.report import tables

    result = commands.report(folder, allow_fake=allow_fake)
    if as_json:
        print((folder / "result.json").read_text())
    else:
        tables.print_fit(result, folder / "report.html")


@app.command()
def doctor(
    board: Annotated[str, typer.Argument(help="A board of boards.toml, or local.")] = "local",
    as_json: JsonOption = False,
) -> None:
    """Check whether BOARD is ready, and say what to do where it is not."""
    from harness.boards import doctor as doctoring
    from harness.boards import inventory
    from harness.report import doctor as reporting

    spec = inventory.find(board)
    with reporting.progress(spec.name) as on_check:
        diagnosis = doctoring.diagnose(spec, on_check=on_check)
    if as_json:
        _print_json(reporting.diagnosis_json(diagnosis))
    else:
        reporting.print_diagnosis(diagnosis)
    raise typer.Exit({"usable": 0, "unusable": 1, "unreachable": 3}[diagnosis.verdict])


@boards_app.command("list")
def boards_list(as_json: JsonOption = False) -> None:
    """List the boards of boards.toml, and local."""
    from dataclasses import asdict

    from harness.boards import inventory
    from harness.report import tables

    boards = inventory.load()
    if as_json:
        _print_json([asdict(board) for board in boards])
    else:
        tables.print_boards(boards)


@boards_app.command("trust")
def boards_trust(
    name: Annotated[str, typer.Argument(help="A board of boards.toml.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Show a board's host key fingerprint and, once confirmed, store it."""
    from harness.boards import inventory, ssh

    spec = inventory.find(name)
    key = ssh.host_key(spec)
    print(f"{name} ({spec.host}) presents the host key {ssh.fingerprint(key)}")
    if not yes:
        typer.confirm("Compare it with the board's own. Trust it?", abort=True)
    ssh.trust(spec, key)
    print(f"{name} is trusted from now on")


@boards_app.command("show")
def boards_show(
    name: Annotated[str, typer.Argument(help="A board of boards.toml, or local.")],
    as_json: JsonOption = False,
) -> None:
    """Connect to a board and print what the agent finds there."""
    from dataclasses import asdict

    from harness import commands
    from harness.report import tables

    facts = commands.probe(name)
    if as_json:
        _print_json(asdict(facts))
    else:
        tables.print_facts(facts)


@boards_app.command("clean")
def boards_clean(
    name: Annotated[str, typer.Argument(help="A board of boards.toml, or local.")],
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, help="Only what was unused for these days.")
    ] = 0.0,
    unfetched: Annotated[
        bool, typer.Option("--unfetched", help="Also results that no host has fetched yet.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Free a board's disk of files and finished jobs that boardfit has left there."""
    from dataclasses import asdict

    from harness import commands
    from harness.report import tables

    state = commands.clean(name, keep_s=86400 * older_than, unfetched=unfetched)
    if as_json:
        _print_json(asdict(state))
    else:
        tables.print_cache(state)


if __name__ == "__main__":
    main()
