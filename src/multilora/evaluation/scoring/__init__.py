"""Log-likelihoods of requests; prefixes that requests share are computed once."""
