"""Detectors outside PyTorch: ONNX."""
