"""The policy: a decoder, its log-probabilities and the sampler."""
