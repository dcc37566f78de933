"""Detectors outside PyTorch: ONNX and AOTInductor."""
