"""The search over backbone, loss and learning rate: Ray Tune over `train.loop.fit`."""
