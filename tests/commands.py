"""Commands in separate processes, forked from a server that has imported TensorFlow.

A command in a test spends most of its time on the import of TensorFlow. The server of `multiprocessing` imports it
once, starts no thread, and forks: each command has its own process, environment, working directory, signals and exit
status. Tests that need a fresh interpreter start one by `subprocess`.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import weakref

import keras

# The server preloads TensorFlow only: no other library was tested for forking. Commands import their own modules.
PRELOADED = keras.backend.backend() == "tensorflow"
HEAVY = (
    "tensorflow",
    "keras",
    "elrt_keras.export",
    "elrt_keras.litert",
    "elrt_keras.launch.training",
    "matplotlib.figure",
)


def _server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(HEAVY))
    return context


_CONTEXT = _server() if PRELOADED else None


def _main(module, arguments, folder, environment, output, errors):
    for path, descriptor in ((output, 1), (errors, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [module, *arguments]
    if module.endswith(".py"):
        runpy.run_path(module, run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


class Command:
    """Running process of `python -m module arguments` or `python file.py arguments`.

    It has the methods and attributes of `subprocess.Popen` that the tests use.

    Args:
        module: name of a module that is a command, or path of a program.
        arguments: arguments of the command line.
        cwd: the working directory.
        env: the whole environment; by default that of this process.
        log: path of a file for standard output and error; by default two temporary files.
    """

    def __init__(self, module, *arguments, cwd, env=None, log=None):
        self.args = [module, *map(str, arguments)]
        self._output, self._errors = (self._file(), self._file()) if log is None else (log, log)
        open(self._output, "w").close()
        environment = dict(os.environ if env is None else env)
        if PRELOADED:
            self._process = _CONTEXT.Process(
                target=_main, args=(module, self.args[1:], str(cwd), environment, self._output, self._errors)
            )
            self._process.start()
        else:
            with open(self._output, "a") as out, open(self._errors, "a") as err:
                command = self.args if module.endswith(".py") else ["-m", *self.args]
                self._process = subprocess.Popen(
                    [sys.executable, *command], cwd=cwd, env=environment, stdout=out, stderr=err
                )
        self.pid = self._process.pid

    def _file(self):
        descriptor, path = tempfile.mkstemp(prefix="command")
        os.close(descriptor)
        weakref.finalize(self, os.unlink, path)
        return path

    @property
    def returncode(self):
        return self._process.exitcode if PRELOADED else self._process.poll()

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    @property
    def stdout(self):
        """Text that the command has printed so far."""
        return _text(self._output)

    @property
    def stderr(self):
        return _text(self._errors)

    def communicate(self, timeout=None):
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self.stdout, self.stderr


def _text(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def run(name, *arguments, cwd, env=None, timeout=500):
    """Runs `elrt-name arguments` to its end; returns the result like `subprocess.run` with captured text."""
    return _ended(Command(f"elrt_keras.launch.{name}", *arguments, cwd=cwd, env=env), timeout)


def program(text, *arguments, cwd, env=None, timeout=500):
    """Runs the Python program in `text` to its end; returns the result like `subprocess.run` with captured text."""
    with tempfile.NamedTemporaryFile("w", suffix=".py", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        return _ended(Command(file.name, *arguments, cwd=cwd, env=env), timeout)


def _ended(process, timeout):
    output, errors = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
