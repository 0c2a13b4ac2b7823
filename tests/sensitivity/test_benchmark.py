"""The parts of the correlation benchmark that compute: policies, the cache, the ceiling."""

from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.correlation import Cache, ceiling, correlations
from tests.benchmarks.policies import BITS, policies


def test_policies_repeat_and_half_of_them_are_near_one_number_of_bits() -> None:
    found = policies(20, 40)
    assert found == policies(20, 40) != policies(20, 40, seed=1)
    assert all(len(policy) == 20 and set(policy) <= set(BITS) for policy in found)
    for policy in found[1::2]:
        places = [BITS.index(bits) for bits in policy]
        assert max(places) - min(places) <= 2
        assert min(policy) >= 3


def test_a_later_run_goes_on_where_the_first_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert Cache(path).get("first", lambda: {"loss": 0.5}) == {"loss": 0.5}
    again = Cache(path)
    assert again.get("first", lambda: pytest.fail("is known")) == {"loss": 0.5}
    assert again.get("second", lambda: 2) == 2
    assert len(path.read_text().splitlines()) == 2


def test_no_score_can_correlate_better_than_the_ceiling_with_noisy_losses() -> None:
    """True values with noise as large as they: a perfect score reaches sqrt(1 / 2) or so."""
    rng = np.random.default_rng(0)
    true = rng.standard_normal(400)
    # Noise of variance 1 on the whole is noise of variance 2 on either half.
    halves = true[:, None, None] + np.sqrt(2) * rng.standard_normal((400, 8, 2))
    results = [{"halves": row.tolist()} for row in halves]
    assert ceiling(results) == pytest.approx(np.sqrt(0.5), abs=0.05)
    exact = [{"halves": [[value, value]]} for value in true]
    assert ceiling(exact) == pytest.approx(1)


def test_moderate_policies_lose_no_more_than_the_original_has() -> None:
    """And a policy without a result is left out of what needs it."""
    losses = [0.1, 0.2, 0.3, 0.4, 0.5, 2.0]
    results = [
        {"bits": (b,), "loss": x, "divergence": x, "halves": [[x, x]]}
        for b, x in zip((8, 6, 5, 4, 3, 2), losses, strict=True)
    ]
    for result in results[:4]:
        result["calibration loss"] = -result["loss"]  # type: ignore[operator]
    table = {"layer": [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]}
    rows = correlations("net", ["layer"], {"bits": table}, results, fp32=0.6)
    found = {(row["policies"], row["truth"], row["score"]): row for row in rows}
    assert found["all", "loss", "bits"]["n"] == 6
    assert found["moderate", "loss", "bits"]["n"] == 5
    assert found["all", "loss", "bits"]["spearman"] == pytest.approx(1)
    assert found["all", "loss", "calibration loss"]["n"] == 4
    assert found["all", "loss", "calibration loss"]["spearman"] == pytest.approx(-1)
    assert not any(row["truth"] == "loss, anchored batch norm" for row in rows)
