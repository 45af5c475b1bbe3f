"""Export in the formats of llama.cpp and mlx-lm."""
