"""Files to deploy: ONNX, precisions, bundles."""
