"""Commands that measure, compare and bring in measurements."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import (
    BoardOption,
    JsonOption,
    ShapeOption,
    StrictOption,
    WeightsOption,
    app,
    print_json,
)


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
    fp16: Annotated[bool, typer.Option("--fp16", help="TensorRT: allow fp16 beside fp32.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="TensorRT: run the Q/DQ of NETWORK as int8.")
    ] = False,
    best: Annotated[
        bool, typer.Option("--best", help="TensorRT: every precision that the chip has fast.")
    ] = False,
    no_tf32: Annotated[
        bool, typer.Option("--no-tf32", "--noTF32", help="TensorRT: fp32 is not to be TF32.")
    ] = False,
    workspace: Annotated[
        str | None, typer.Option("--workspace", help="TensorRT: limit the builder's scratch, MiB.")
    ] = None,
    mem_pool_size: Annotated[
        str | None,
        typer.Option("--mem-pool-size", "--memPoolSize", help="The same: workspace:256M."),
    ] = None,
    use_cuda_graph: Annotated[
        bool,
        typer.Option("--use-cuda-graph", "--useCudaGraph", help="TensorRT: replay a CUDA graph."),
    ] = False,
    use_spin_wait: Annotated[
        bool,
        typer.Option("--use-spin-wait", "--useSpinWait", help="TensorRT: wait in a busy loop."),
    ] = False,
    no_data_transfers: Annotated[
        bool,
        typer.Option(
            "--no-data-transfers", "--noDataTransfers", help="TensorRT: no copies to the GPU."
        ),
    ] = False,
    rebuilds: Annotated[
        int,
        typer.Option("--rebuilds", min=1, help="TensorRT: build so often, keep the fastest."),
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Measure NETWORK on the board, end to end and kernel by kernel."""
    if plot is not None and sustain.strip() == "0":
        raise typer.BadParameter("--plot shows --sustain; give both")
    from harness import commands, profiling, run_commands
    from harness.report import engines, judged, plain, tables
    from harness.tensorrt import options
    from harness.trtexec import summary

    found = commands.profile(
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
        engine=options.read(
            fp16=fp16,
            int8=int8,
            best=best,
            no_tf32=no_tf32,
            workspace=workspace,
            mem_pool_size=mem_pool_size,
            use_cuda_graph=use_cuda_graph,
            use_spin_wait=use_spin_wait,
            no_data_transfers=no_data_transfers,
            rebuilds=rebuilds,
        ),
    )
    measurement, kernels = found.measurement, found.profile
    verdict = profiling.judge(measurement, percentile=percentile)
    soak = profiling.soaking(measurement)
    if plot is not None and soak is not None:
        judged.write_soak(measurement, soak, plot)
    run_commands.export(
        measurement, kernels, times=export_times, layers=export_profile, trace=export_trace
    )
    times = found.performance or summary.of(measurement, percentile=percentile)
    if as_json:
        content = plain.profile_json(measurement, kernels, verdict=verdict, soak=soak)
        print_json({**content, **engines.engine_json(measurement, times, found)})
    else:
        tables.print_profile(measurement, kernels, verdict=verdict, soak=soak)
        engines.print_engine(measurement, times, found)
    if strict:
        profiling.require_valid(network, verdict, kept=str(store))


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
    from harness import run_commands
    from harness.comparison import differences
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
        print_json(printing.comparison_json(found, limit=limit, outcome=outcome))
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
        print_json(imports.imports_json(found))
    else:
        imports.print_imports(found, store=store)
