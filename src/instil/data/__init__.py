"""From a file of rows to batches: sources, templates, tokenizers, masks, collate, loader, splits."""
