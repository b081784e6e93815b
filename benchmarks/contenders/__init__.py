"""Ways of training one module for four tasks on the same rows: ours, and what people use today."""
