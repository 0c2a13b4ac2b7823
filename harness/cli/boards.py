"""Commands about boards."""

from typing import Annotated

import typer

from harness.cli.options import (
    JsonOption,
    app,
    boards_app,
    print_json,
)


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
        print_json(reporting.diagnosis_json(diagnosis))
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
        print_json([asdict(board) for board in boards])
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
        print_json(asdict(facts))
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
        print_json(asdict(state))
    else:
        tables.print_cache(state)
