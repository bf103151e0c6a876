"""Image data: sources, decoding, resizing, splits, augmentation, batches."""
