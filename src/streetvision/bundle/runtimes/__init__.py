"""Exported runtimes of a bundle, ONNX Runtime and OpenVINO, and their comparison with PyTorch."""
