"""What runs inside the training processes: model, data order, loss, engine, loop, checkpoint; conversion and fine-tuning."""
