"""Commands about one fit."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import (
    BoardOption,
    DataOption,
    EpochsOption,
    FactoryArgument,
    ImageSizeOption,
    JsonOption,
    LabelsOption,
    LimitOption,
    MeanOption,
    MetricOption,
    PreprocessOption,
    SeedOption,
    StdOption,
    StrictOption,
    WeightsOption,
    app,
    print_json,
)


@app.command()
def fit(
    network: FactoryArgument,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="The result folder; rerunning resumes.")],
    board: BoardOption = "local",
    weights: WeightsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    image_size: ImageSizeOption = None,
    preprocess: PreprocessOption = None,
    labels: LabelsOption = None,
    limit: LimitOption = None,
    metric: MetricOption = None,
    latency: Annotated[
        str | None, typer.Option("--latency", help="4ms, or 22% of the baseline's.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="1.5MB, or 20% of the baseline's file.")
    ] = None,
    max_drop: Annotated[
        float, typer.Option("--max-drop", help="Points of top-1, or of --metric, that may be lost.")
    ] = 1.0,
    methods: Annotated[
        str,
        typer.Option("--methods", help="prune, quantize and distill (--student), with commas."),
    ] = "prune,quantize",
    student: Annotated[
        str | None,
        typer.Option(
            "--student",
            help="file.py:factory of a smaller network that NETWORK teaches (--methods distill).",
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Allocate and measure at most this often.")
    ] = 3,
    epochs: EpochsOption = 4,
    seed: SeedOption = 0,
    alternatives: Annotated[
        bool, typer.Option(help="Also build and measure each method alone.")
    ] = True,
    strategy: Annotated[
        Path | None,
        typer.Option(
            "--strategy",
            help="Build this strategy file as it stands, and judge it: nothing is allocated.",
        ),
    ] = None,
    latency_model: Annotated[
        Path | None,
        typer.Option(
            "--latency-model",
            help="A file that boardfit calibrate, strategies or fit wrote for this board; "
            "it is not calibrated again.",
        ),
    ] = None,
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
    from harness import commands, networks, profiling

    requested = commands.budgets(
        latency=latency, size=size, max_drop=max_drop, needed=strategy is None
    )
    result = commands.fit(
        network,
        weights=weights,
        data=data,
        preparation=networks.preparation(
            mean=mean,
            std=std,
            size=image_size,
            function=preprocess,
            labels=labels,
            limit=limit,
            seed=seed,
        ),
        board=board,
        budgets=requested,
        methods=commands.methods(methods),
        rounds=rounds,
        epochs=epochs,
        seed=seed,
        alternatives=alternatives,
        out=out,
        sustain=sustain,
        metric=metric,
        student=student,
        strategy=strategy,
        latency_model=latency_model,
    )
    if as_json:
        print((out / "result.json").read_text())
    else:
        from harness.report import fitted

        fitted.print_fit(result, out / "report.html")
    if strict:
        profiling.require_valid_fit(result, out)
    raise typer.Exit(0 if result.verdict == "meets" else 4)


class Calibrate(str, enum.Enum):
    """How the range of an activation is chosen."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    ERROR = "error"


@app.command()
def quantize(
    network: Annotated[Path, typer.Argument(help="An .onnx file of any exporter.")],
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="The quantized .onnx file.")],
    board: BoardOption = "local",
    calibrate: Annotated[
        Calibrate,
        typer.Option("--calibrate", help="Ranges of activations: all values, most, least error."),
    ] = Calibrate.ERROR,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="A layer that stays float; repeatable.")
    ] = None,
    weights_int4: Annotated[
        bool, typer.Option("--weights-int4", help="Only store the weights, in four bits.")
    ] = False,
    mean: MeanOption = None,
    std: StdOption = None,
    image_size: ImageSizeOption = None,
    preprocess: PreprocessOption = None,
    limit: LimitOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the choice of images.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Quantize the layers of an ONNX file for a board, and compare its outputs."""
    from harness import networks, quantizing
    from harness.report import quantized

    result = quantizing.quantize_file(
        network,
        data=data,
        preparation=networks.preparation(
            mean=mean, std=std, size=image_size, function=preprocess, limit=limit, seed=seed
        ),
        out=out,
        calibrate=calibrate.value,
        exclude=exclude or (),
        board=board,
        int4=weights_int4,
    )
    if as_json:
        print_json(quantized.quantized_json(result))
    else:
        quantized.print_quantized(result)


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
    from harness.report import fitted

    result = commands.report(folder, allow_fake=allow_fake)
    if as_json:
        print((folder / "result.json").read_text())
    else:
        fitted.print_fit(result, folder / "report.html")
