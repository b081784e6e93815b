"""A trained module for use elsewhere: merged into its backbone, as ordinary LoRA, or as an ONNX graph.

`manyskills.export.run` does it all; every export is compared with the module it was made from.
"""
