"""Answers without torch: an exported graph run by onnxruntime, heads in NumPy.

Nothing in here imports torch, transformers or peft.
"""
