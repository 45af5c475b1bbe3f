"""Export the update of an adapter as a GGUF adapter for llama.cpp, Ollama and others that read GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from multilora.errors import RunDirectoryError, RunError
from multilora.export.factors import AdapterFactors
from multilora.export.gguf_tensors import family_of, gguf_tensors
from multilora.export.source import Source, open_source
from multilora.export.verify import check_finite
from multilora.files import atomic_file
from multilora.foreign_errors import own_errors

SUFFIX = ".gguf"
