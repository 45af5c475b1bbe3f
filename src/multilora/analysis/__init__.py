"""Analysis of the weight update Delta W: spectra per matrix, and figures."""
