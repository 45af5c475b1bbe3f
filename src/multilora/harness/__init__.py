"""Evaluate with lm-evaluation-harness: its tasks, prompts and metrics, answered by this package's engine.

lm-eval is optional (`pip install 'multilora[lm-eval]'`). It has no plugin discovery, so its own command line does not
know the model `multilora`; `python -m multilora.harness` is the same command line with the model registered.
"""
