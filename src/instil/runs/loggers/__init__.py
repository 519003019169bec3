"""Where a training is written down besides its folder: TensorBoard, Weights & Biases, trackio, MLflow."""
