"""Pre-training of small backbones from code on disk."""
