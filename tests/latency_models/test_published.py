"""What the benchmarks make of published measurements, from rows written here."""

from collections import Counter

import pytest

from tests.benchmarks.published import live_edges, nasbench, tx2

CONV, POOL, SKIP = "nor_conv_3x3", "avg_pool_3x3", "skip_connect"
DEAD = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
# Node 1 has no input; node 2 and node 3 are one convolution each, of the cell's input.
TWO = f"|none~0|+|{CONV}~0|{SKIP}~1|+|{CONV}~0|{SKIP}~1|{SKIP}~2|"


@pytest.mark.parametrize(
    ("cell", "edges"),
    [
        (TWO, {(0, 2): CONV, (0, 3): CONV, (2, 3): SKIP}),
        # All six edges.
        (
            f"|{CONV}~0|+|{POOL}~0|{CONV}~1|+|{SKIP}~0|{POOL}~1|{CONV}~2|",
            {
                (0, 1): CONV,
                (0, 2): POOL,
                (1, 2): CONV,
                (0, 3): SKIP,
                (1, 3): POOL,
                (2, 3): CONV,
            },
        ),
        # Nobody needs node 1.
        (f"|{CONV}~0|+|none~0|none~1|+|{SKIP}~0|none~1|none~2|", {(0, 3): SKIP}),
        # Node 1 feeds node 2, which nobody needs: both have gone.
        (f"|{CONV}~0|+|none~0|{POOL}~1|+|{CONV}~0|none~1|none~2|", {(0, 3): CONV}),
        # Node 2 reads node 1, which nothing reaches.
        (f"|none~0|+|none~0|{CONV}~1|+|{POOL}~0|{CONV}~1|{CONV}~2|", {(0, 3): POOL}),
        # One path through all nodes.
        (
            f"|{CONV}~0|+|none~0|{POOL}~1|+|none~0|none~1|{CONV}~2|",
            {(0, 1): CONV, (1, 2): POOL, (2, 3): CONV},
        ),
        # No path from the input to the output.
        (f"|{CONV}~0|+|{CONV}~0|none~1|+|none~0|none~1|none~2|", {}),
        (DEAD, {}),
    ],
)
def test_live_edges_are_those_on_a_path_through_the_cell(cell, edges):
    assert live_edges(cell) == edges


def network(folder, cell, *, precision="fp32", runtime="tensorrt-6"):
    """The works of the one network in a table of it."""
    path = folder / "cells.csv"
    path.write_text(
        "arch,fp32_latency_ms,fp16_latency_ms,isomorphism_class\n" + f"{cell},13.5,4.25,alike\n"
    )
    (item,) = nasbench(path, precision=precision, runtime=runtime).items
    assert (item.name, item.twin) == (cell, "alike")
    assert item.seconds == pytest.approx({"fp32": 13.5e-3, "fp16": 4.25e-3}[precision])
    return item.works


def counts(works):
    return Counter(work.kind for work in works)


# What stands around the cells. Stem: a convolution of three channels, which takes up the norm and
# the Relu. Two blocks that halve: two 3x3 convolutions, a pooling and a 1x1 convolution, a sum.
# Then pooling, flattening, classifier.
FRAME = {
    "conv_direct": 1,
    "conv_3x3": 2 * 2,
    "average_pool": 2,
    "conv_1x1": 2,
    "binary": 2,
    "global_pool": 1,
    "view": 1,
    "gemm": 1,
}


def test_a_cell_of_two_convolutions_of_its_input_is_one_convolution_and_a_sum(tmp_path):
    works = network(tmp_path, TWO)
    # 3 stages of 5 cells; the Relu of the next cell is in the sum before it.
    assert counts(works) == Counter(FRAME) + Counter(conv_3x3=15, binary=15)
    # A cell of the first stage: 2 x 16 outputs of 16 inputs, 3x3, at 32 x 32 positions.
    assert works[1].macs == 2 * 16 * 16 * 9 * 32 * 32
    # Its sum reads both halves and writes one: 16 x 32 x 32 floats each.
    assert (works[2].bytes_in, works[2].bytes_out) == (2 * 65536, 65536)


def test_the_macs_of_a_network_are_those_of_its_layers(tmp_path):
    # A 3x3 convolution of c channels at n x n positions, c x n being 512 in all stages:
    # c x c x 9 x n x n = 9 x 512 x 512 = 2,359,296; two in each of 15 cells: 70,778,880.
    # Stem: 3 x 16 x 9 x 32 x 32 = 442,368. A block that halves: 1,179,648 (half the channels
    # enter), 2,359,296, and 1x1: 131,072; together 3,670,016, twice: 7,340,032.
    # Classifier: 640. The table gives 78,561,920 for this cell.
    assert sum(work.macs for work in network(tmp_path, TWO)) == 78_561_920


def test_tensorrt_8_sums_in_one_of_the_two_convolutions(tmp_path):
    works = network(tmp_path, TWO, runtime="tensorrt")
    # The sum is in the convolution, the Relu of the next cell with it. Of a block that halves the
    # later branch sums: its 1x1 convolution.
    expected = Counter(FRAME) + Counter(conv_3x3=2 * 15)
    del expected["binary"]
    # Where a block halves, a pooling reads the sum, too: its Relu is a kernel of its own.
    assert counts(works) == expected + Counter(elementwise=2)


def test_a_pooling_and_a_convolution_of_one_sum_both_read_it(tmp_path):
    cell = f"|{POOL}~0|+|none~0|none~1|+|{CONV}~0|{SKIP}~1|none~2|"
    works = network(tmp_path, cell)
    # A pooling, a convolution and a sum in a cell; the sum keeps itself for the next pooling. The
    # stem takes up no Relu, for the first cell's pooling reads it, too.
    assert counts(works) == Counter(FRAME) + Counter(
        average_pool=15, conv_3x3=15, binary=15, elementwise=1
    )


def test_half_precision_needs_no_reformats_within_the_network(tmp_path):
    cell = f"|{POOL}~0|+|none~0|none~1|+|{CONV}~0|{SKIP}~1|none~2|"
    half = counts(network(tmp_path, cell, precision="fp16"))
    assert half == counts(network(tmp_path, cell)) + Counter(reformat=2)


def test_poolings_of_one_tensor_are_one(tmp_path):
    # Nodes 1 and 2 both are the pooled input; their sum stands in node 3.
    cell = f"|{POOL}~0|+|{POOL}~0|none~1|+|none~0|{SKIP}~1|{SKIP}~2|"
    works = network(tmp_path, cell)
    assert counts(works)["average_pool"] == 15 + 2


def test_a_cell_that_hands_its_input_on_costs_nothing(tmp_path):
    works = network(tmp_path, f"|none~0|+|none~0|none~1|+|{SKIP}~0|none~1|none~2|")
    assert counts(works)["conv_3x3"] == FRAME["conv_3x3"]


def cnv(folder, width="100", precision="fp32", batch="1"):
    """The works of the one row of a table."""
    path = folder / "cnv.csv"
    path.write_text(
        "width_percent,precision,power_mode,batch,latency_ms\n"
        f"{width},{precision},maxn,{batch},1.5\n"
    )
    published = tx2(path)
    (item,) = published.items
    assert (published.runtime, item.seconds) == ("tensorrt", pytest.approx(1.5e-3))
    return item.works


def test_cnv_has_the_layers_of_its_paper(tmp_path):
    # Convolutions without padding take two positions from each side of 32 x 32: 30, 28, pooled 14,
    # 12, 10, pooled 5, 3, 1.
    assert [(w.kind, w.macs) for w in cnv(tmp_path)] == [
        ("conv_direct", 128 * 3 * 9 * 30 * 30),
        ("conv_3x3", 128 * 128 * 9 * 28 * 28),
        ("max_pool", 0),
        ("conv_3x3", 256 * 128 * 9 * 12 * 12),
        ("conv_3x3", 256 * 256 * 9 * 10 * 10),
        ("max_pool", 0),
        ("conv_3x3", 512 * 256 * 9 * 3 * 3),
        ("conv_3x3", 512 * 512 * 9),
        ("gemm", 512 * 1024),
        ("gemm", 1024 * 1024),
        ("gemm", 1024 * 10),
    ]


def test_cnv_reads_and_writes_whole_images(tmp_path):
    works = cnv(tmp_path, batch="2")
    # Twice four bytes: 3 x 32 x 32 values in, 128 x 30 x 30 out.
    assert (works[0].bytes_in, works[0].bytes_out) == (8 * 3 * 1024, 8 * 128 * 900)
    # The first pooling: 128 x 28 x 28 in, 128 x 14 x 14 out.
    assert (works[2].bytes_in, works[2].bytes_out) == (8 * 128 * 784, 8 * 128 * 196)
    # Two rows of 1,024 in, of ten out.
    assert (works[-1].bytes_in, works[-1].bytes_out) == (8 * 1024, 8 * 10)


def test_cnv_cut_to_an_eighth_keeps_its_image_and_its_classes(tmp_path):
    works = cnv(tmp_path, width="12.5", precision="fp16")
    # 16, 32, 64 and 128 channels; three of the image and ten classes stay.
    assert works[0].macs == 16 * 3 * 9 * 30 * 30
    assert works[7].macs == 64 * 64 * 9
    assert [w.macs for w in works[-3:]] == [64 * 128, 128 * 128, 128 * 10]
    assert {w.precision for w in works} == {"fp16"}
