"""The scoring service: an ONNX model behind gRPC, and the client that scores whole image sets through it."""
