"""Images in: sources, decoding, resizing, splits, augmentation, batches."""
