"""The command that plans: strategies from requirements, before anything is built."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import (
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
    ShapeOption,
    StdOption,
    WeightsOption,
    app,
)


@app.command()
def strategies(
    network: FactoryArgument,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for plan, strategy files and report.")
    ] = Path("runs/strategies"),
    requirements: Annotated[
        Path | None,
        typer.Option("--requirements", help="A .toml file; the options below win over it."),
    ] = None,
    latency: Annotated[
        str | None, typer.Option("--latency", help="At most: 40ms, or 60% of the original's.")
    ] = None,
    fps: Annotated[
        str | None, typer.Option("--fps", help="Frames a second, one after the other: 25.")
    ] = None,
    percentile: Annotated[
        float | None, typer.Option("--percentile", help="Of the latency's; 50 if not given.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="Of the file that is shipped: 3MB or 20%.")
    ] = None,
    engine_size: Annotated[
        str | None, typer.Option("--engine-size", help="Of what lies on the board: 5MB.")
    ] = None,
    peak_memory: Annotated[
        str | None, typer.Option("--peak-memory", help="Of activations alive at once: 2MB.")
    ] = None,
    parameters: Annotated[
        str | None, typer.Option("--parameters", help="At most: 1M, or 50%.")
    ] = None,
    macs: Annotated[
        str | None, typer.Option("--macs", help="Multiply-accumulates of a call: 100M, or 50%.")
    ] = None,
    energy: Annotated[str | None, typer.Option("--energy", help="Of one call: 20mJ.")] = None,
    accuracy: Annotated[
        str | None, typer.Option("--accuracy", help="At least: 90% (needs --data).")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", help="Points that may be lost (needs --data).")
    ] = None,
    methods: Annotated[
        str | None, typer.Option("--methods", help="prune, quantize and distill, with commas.")
    ] = None,
    precisions: Annotated[
        str | None, typer.Option("--precisions", help="fp32, fp16 and int8, with commas.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option("--objective", help="accuracy, latency, size, or accuracy=0.7,size=0.3."),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="A layer not to touch; repeatable.")
    ] = None,
    board: Annotated[
        str | None,
        typer.Option("--board", help="A board of boards.toml, or local; it is calibrated."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option("--profile", help="A board profile, such as jetson-nano: no board needed."),
    ] = None,
    latency_model: Annotated[
        Path | None,
        typer.Option("--latency-model", help="A file that boardfit calibrate wrote."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="As for boardfit fit; without it no loss of accuracy is predicted."
        ),
    ] = None,
    shape: ShapeOption = None,
    weights: WeightsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    image_size: ImageSizeOption = None,
    preprocess: PreprocessOption = None,
    labels: LabelsOption = None,
    limit: LimitOption = None,
    metric: MetricOption = None,
    student: Annotated[
        list[str] | None,
        typer.Option("--student", help="file.py:factory of a smaller network; repeatable."),
    ] = None,
    epochs: EpochsOption = 4,
    student_epochs: Annotated[
        int, typer.Option("--student-epochs", min=1, help="Epochs in which students are taught.")
    ] = 30,
    seed: SeedOption = 0,
    verify: Annotated[
        int, typer.Option("--verify", min=0, help="Build and measure so many of the best.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Say what would make NETWORK meet the requirements on a board, without building anything."""
    from harness import networks
    from harness.planning import commands

    planned = commands.strategies(
        commands.PlanRequest(
            network=network,
            requirements=commands.required(
                requirements,
                latency=latency,
                fps=fps,
                percentile=percentile,
                size=size,
                engine_size=engine_size,
                peak_memory=peak_memory,
                parameters=parameters,
                macs=macs,
                energy=energy,
                accuracy=accuracy,
                max_drop=max_drop,
                methods=methods,
                precisions=precisions,
                objective=objective,
                keep=keep,
            ),
            out=out,
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
            shape=shape,
            board=board,
            profile=profile,
            latency_model=latency_model,
            students=tuple(student or ()),
            metric=metric,
            epochs=epochs,
            student_epochs=student_epochs,
            seed=seed,
            verify=verify,
        )
    )
    if as_json:
        print(commands.as_json(planned))
    else:
        from harness.report import planned as reporting

        reporting.print_plan(planned.plan, out)
        if planned.verification is not None:
            reporting.print_verification(planned.verification)
    raise typer.Exit(0 if planned.possible else 4)
