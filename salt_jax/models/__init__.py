"""Pretrained models and finished runs, in and out: Hugging Face folders, GGUF, policy folders."""
