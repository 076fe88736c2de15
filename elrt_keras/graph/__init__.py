"""Reading and rewriting Keras models: paths of layers, opened blocks, calls and their costs, copies of models."""
