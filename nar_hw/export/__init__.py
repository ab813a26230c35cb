"""Networks as files that run without this package: ONNX, and the bundle around it."""
