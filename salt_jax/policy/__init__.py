"""The policy: a decoder, its log-probabilities, the sampler, and pretrained models in and out."""
