"""Heavy imports run without the garbage collector, which is then as it was."""

from __future__ import annotations

import gc

import pytest

from multilora.cli.imports import heavy_imports


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_collector_pauses_and_is_then_as_before(enabled, fails):
    paused = []

    def do_import():
        with heavy_imports():
            paused.append(not gc.isenabled())
            if fails:
                raise ImportError

    try:
        if not enabled:
            gc.disable()
        try:
            do_import()
        except ImportError:
            assert fails
        assert paused == [True]
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
