"""Runtimes that execute a bundle: PyTorch, ONNX Runtime, OpenVINO."""
