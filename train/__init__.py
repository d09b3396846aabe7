"""Accelerate training of one configuration, checkpoints, ONNX export and tracking."""
