"""Commands about latency models."""

import json
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import (
    BoardOption,
    CoverageOption,
    JsonOption,
    ProfileOption,
    RuntimeOption,
    TableOption,
    app,
    print_json,
)


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
        print_json({**json.loads(model.to_json()), **measured_in})
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
    if (table is None) == (network is None):
        raise typer.BadParameter("give either NETWORK or --table")
    from harness import commands
    from harness import tables as measured
    from harness.report import heldout, plain, tables

    if table is not None:
        rows = measured.predict(table, latency_model=latency_model, coverage=coverage, out=out)
        if as_json:
            print_json(heldout.prediction_rows_json(rows))
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
        print_json(plain.prediction_json(prediction))
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
    if (table is None) == (not networks):
        raise typer.BadParameter("give either NETWORKS or --table")
    from harness import commands
    from harness import tables as measured
    from harness.report import heldout, plain, tables

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
        print_json(plain.validation_json(rows))
    else:
        tables.print_validation(rows)
