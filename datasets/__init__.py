"""Videos, their frames, the lists, and the batches made of them."""
