"""The processes of the soak: they run the command line, and say what they are doing; see test_soak.py."""

from __future__ import annotations

import functools
import os
import random
import signal
import sys
import time
import traceback

from transformers import TrainerCallback

import multilora.cli
import multilora.runs.train as training

STARTING = "b"
PHASES = {
    "l": "loading",
    STARTING: "starting",
    "s": "steps",
    "e": "evaluating",
    "c": "checkpoint",
    "f": "finishing",
}


class Marks(TrainerCallback):
    """Tells the driver what the child does now, and slows it down."""

    def __init__(self, descriptor, every, save, memory_error_after=None):
        self.descriptor, self.every, self.save = descriptor, every, save
        self.memory_error_after, self.steps = memory_error_after, 0

    def mark(self, phase, state):
        os.write(self.descriptor, f"{phase}{state.global_step}\n".encode())

    def on_step_end(self, args, state, control, **_):
        time.sleep(0.01)
        self.mark("s", state)
        self.steps += 1
        if self.steps == self.memory_error_after:
            raise MemoryError("cannot allocate 12 GiB")
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.mark("e", state)
        else:
            self._mark_checkpoint(state)

    def on_evaluate(self, args, state, control, **_):
        self.mark("s", state)
        self._mark_checkpoint(state)

    def _mark_checkpoint(self, state):
        if state.global_step % self.save == 0:
            self.mark("c", state)

    def on_save(self, args, state, control, **_):
        self.mark("s", state)

    def on_train_end(self, args, state, control, **_):
        if state.global_step == state.max_steps:
            self.mark("f", state)


def move_clock(seed):
    """Let the time jump by up to a year, forwards or backwards, at every look at the clock."""
    rng, real = random.Random(seed), time.time
    time.time = lambda: real() + rng.choice([-365, -1, 0, 1, 365]) * 86400


class Child:
    """A forked process that runs one command line."""

    def __init__(self, arguments, output, recipe, *, prepare=lambda: None, memory_error_after=None):
        self.output, self.phase, self.step, self.seen = output, "l", 0, ""
        self.descriptor, writing = os.pipe()
        os.set_blocking(self.descriptor, False)
        self.status = None
        self.pid = os.fork()
        if self.pid == 0:
            every, save = recipe["evaluation"]["every"], recipe["training"]["save_steps"]
            marks = Marks(writing, every, save, memory_error_after)
            _run(arguments, output, prepare, marks)
        os.close(writing)

    def poll(self):
        """Read the marks, and whether the child has ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        try:
            for mark in os.read(self.descriptor, 65536).decode().split():
                self.phase, self.step = mark[0], int(mark[1:])
                self.seen += mark[0]
        except BlockingIOError:
            pass
        if self.status is not None:
            os.close(self.descriptor)
            self.poll = lambda: True
        return self.status is not None

    def wait_for(self, condition, seconds):
        """Wait until `condition()`, the end of the child, or some seconds have passed; returns whether it runs."""
        deadline = time.monotonic() + seconds
        while not self.poll() and not condition() and time.monotonic() < deadline:
            time.sleep(0.001)
        return self.status is None

    def send(self, number):
        if self.status is None:
            os.kill(self.pid, number)

    def end(self, seconds=60):
        if self.wait_for(lambda: False, seconds):
            self.send(signal.SIGKILL)
            self.wait_for(lambda: False, 10)
            raise AssertionError(f"hangs in {self.phase}{self.step}:\n{self.text}")

    @property
    def text(self):
        return self.output.read_text(errors="replace")

    @property
    def error(self):
        return ("\n" + self.text).rpartition("\nerror: ")[2] if "\nerror: " in "\n" + self.text else ""


def _run(arguments, output, prepare, marks):
    code = 99
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _mark_start(marks)
        training.train = functools.partial(training.train, callbacks=[marks])
        sys.argv = ["multilora", *arguments]
        prepare()
        multilora.cli.main()
    except SystemExit as error:
        code = error.code
    except KeyboardInterrupt:  # between the statements above
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _mark_start(marks):
    begin = training.RunWriter.begin

    def marked(*arguments, **options):
        os.write(marks.descriptor, f"{STARTING}0\n".encode())
        time.sleep(0.01)
        begin(*arguments, **options)

    training.RunWriter.begin = marked
