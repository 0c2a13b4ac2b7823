"""What the commands share: the application they belong to, and options of several of them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

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

FactoryArgument = Annotated[str, typer.Argument(help="module:factory or file.py:factory.")]
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
    str,
    typer.Option(
        "--data",
        help="An .npz; a folder of images; or file.py:function that returns (train, test).",
    ),
]
MeanOption = Annotated[
    str | None, typer.Option("--mean", help="Subtracted from pixels of 0..1: 0.5 or 0.5,0.4,0.4.")
]
StdOption = Annotated[
    str | None, typer.Option("--std", help="What pixels are divided by: 0.2 or 0.2,0.2,0.2.")
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option("--image-size", min=1, help="Resize images and cut out the middle: 224."),
]
PreprocessOption = Annotated[
    str | None,
    typer.Option("--preprocess", help="file.py:function from a PIL image to (c, h, w) floats."),
]
LabelsOption = Annotated[
    str | None, typer.Option("--labels", help="A CSV with the columns file and label.")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Take so many images of each part.")
]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="The trained weights: a state dict.")
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric", help="file.py:function from outputs and targets to a share, instead of top-1."
    ),
]
EpochsOption = Annotated[
    int, typer.Option("--epochs", min=0, help="Epochs of distillation from the original.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Exit with 1 where a measurement is UNSTABLE; it is kept.")
]
ShapeOption = Annotated[
    str | None,
    typer.Option("--shape", help="The input's shape where NETWORK is a factory: 1,3,224,224."),
]


def print_json(value: Any) -> None:
    """Print a result as JSON."""
    print(json.dumps(value, indent=2))
