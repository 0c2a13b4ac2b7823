"""Analytical latency models: ONNX in, seconds out. Knows nothing of boards, torch or SSH."""
