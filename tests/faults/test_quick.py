"""A few faults of every kind in short campaigns; ``python -m tests.faults.campaign`` does more."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.boards import nano as virtual
from tests.faults import campaign
from tests.faults.campaign import Campaigns
from tests.faults.inject import FAULTS, Fault

SEED = 7
CANDIDATES, STRIKES = 4, 2


@pytest.fixture(scope="module")
def campaigns(
    nano_makers: virtual.Makers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Campaigns]:
    """Against a campaign that nothing disturbed, in which nothing may be missing."""
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch, campaign.board(nano_makers, folder, patch) as board:
        real = 1 if nano_makers.python.runtime else 0
        files = campaign.make_files(folder / "files", CANDIDATES, real)
        made = Campaigns(*board, folder, files=files, seed=SEED)
        row = made.undisturbed()
        assert (row.lost, row.duplicated, row.orphans, row.files, row.failed) == (0, 0, 0, 0, 0)
        assert (row.reconnects, row.retries, row.runs) == (0, 0, 1)
        yield made


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_campaign_ends_as_if_undisturbed(campaigns: Campaigns, fault: Fault) -> None:
    if fault.needs_root and os.getuid() != 0:
        pytest.skip("only root can mount a small disk for the cache")
    row = campaigns.under(fault, STRIKES)
    assert row.injected >= 1, row
    assert (row.lost, row.duplicated) == (0, 0), row
    assert (row.orphans, row.files) == (0, 0), row
    assert row.failed == (row.injected if fault.named else 0), row
    assert row.unnamed == 0, row
    # What hits while a session opens is told at once; the campaign resumes when it is run again.
    assert row.runs <= 2, row
