"""Analytical latency models: ONNX in, seconds out. Knows nothing of boards, torch or SSH.

``graph`` reads a network as the kernels that a runtime executes, ``roofline`` says how long a
kernel takes, ``calibration`` fits that to measurements, ``posterior`` says what the measurements
leave open, ``validation`` and ``tables`` hold predictions against measurements, ``sweep`` plans
what to measure on a board.

Reading a fitted model as physics
---------------------------------

Fitted to 18 networks with TensorRT FP16 on a Jetson Nano (a peak of 472 Gflop/s, 25.6 GB/s), the
parameters say (``tests/benchmarks/latency_models.py`` names the data; give or take is one standard
deviation of the logarithm):

* ``eta[conv_3x3,fp16]`` = 1.23 (0.15): large 3x3 convolutions run at 1.23 of the datasheet's peak,
  which only Winograd's algorithm can, with 2.25 times fewer products. ``eta[conv_1x1,fp16]`` = 0.78
  (0.21) and ``eta[conv_direct,fp16]`` = 0.47, the first layer with its three input channels.
* A real layer reaches less: 64 to 64 channels, 3x3, at 56 x 56 takes 0.51 ms, 0.97 of the peak; 512
  to 128, 1x1, at 28 x 28 takes 0.38 ms, 0.58 of it. What is lost goes to tiles of 32 outputs that
  are not full (``s`` = 1.7: 16 outputs cost 0.81 of what 32 do), to short sums (``k0`` = 8
  inputs), few outputs (``n0`` = 6) and few rows (``r0`` = 9).
* ``bw`` = 18.6 GB/s (0.2) is what streams of activations reach, 0.73 of the datasheet; weights come
  at 15.8 GB/s (0.35), max pooling at 11.6.
* ``t0`` = 17 to 22 us is what a kernel costs on the device before it works, ``enqueue`` = 35 us
  what the host needs to queue one (the prior; these networks are too large to tell): below about
  35 us of work a kernel the host is the bottleneck, and fewer channels buy nothing.
* ``c0`` = 0.8 ms (0.67) a call.

The same chip with onnxruntime and FP32 (123 networks; a peak of 236 Gflop/s): 3x3 convolutions at
0.81 of the peak (0.15), 1x1 at 0.70, depthwise at 0.023: a depthwise layer of 144 channels at 56 x
56 runs at 4 Gflop/s, where 512 to 128 channels, 1x1, at 28 x 28 run at 92. Streams at 10.8 GB/s,
but broadcasts (squeeze and excite) at 2.4, reductions at 3.2 and slices at 1.4. Each group of a
grouped convolution costs 58 us (``tg``, 0.24), as if each were launched on its own. On the four
Cortex-A57 (47 Gflop/s): 0.37 of the peak in 1x1 and 0.35 in 3x3 convolutions, 0.019 in depthwise
ones.
"""
