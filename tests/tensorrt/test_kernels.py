"""Which int8 layers ran on integers, by what TensorRT's engine inspector tells of each."""

from harness.compression import quantize
from harness.records import KernelTime, Profile


def profile(*kernels, runtime="tensorrt"):
    return Profile(network_sha256="", runtime=runtime, runtime_version="8.5.2", kernels=kernels)


def kernel(node, *, tactic="", precision=""):
    return KernelTime(
        name=node, op="Conv", node=node, latency_s=1e-3, tactic=tactic, precision=precision
    )


NODES = {"conv1": "a", "conv2": "b", "conv3": "c"}


def test_integer_tactics_and_integer_outputs_count_and_others_do_not():
    taken = profile(
        kernel("conv1", tactic="ampere_int8_128x64_ldg16_relu_interior_nt_v1", precision="FP32"),
        kernel("conv2", tactic="sm80_xmma_fprop_i8i8_i8i32_f32_nhwckrsc_nhwc_tilesize64x64x64"),
        kernel("conv3", tactic="sm80_xmma_fprop_f16f16_f16f16_f16_nhwckrsc_nhwc", precision="Half"),
    )
    assert quantize.real_int8_layers(taken, "abc", layer_of_node=NODES) == ("a", "b")
    (left,) = quantize.float_layers(taken, "abc", layer_of_node=NODES)
    assert left.layer == "c" and "TensorRT" in left.why


def test_a_version_that_names_no_tactics_is_not_said_to_run_on_floats():
    taken = profile(kernel("conv1"), kernel("conv2"))
    assert quantize.float_layers(taken, "ab", layer_of_node=NODES) == ()
