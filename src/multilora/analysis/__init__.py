"""What an update did to the weights: spectra of Delta W per matrix, and figures."""
