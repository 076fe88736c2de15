"""Commands as processes of their own, forked from one that has imported what they need.

Most of what a command takes in a test is the import of TensorFlow. The server of `multiprocessing` imports it once,
starts no thread, and forks: each command has its own process, environment, working directory, signals and exit status.
What a fresh interpreter does is tested where `subprocess` starts one.
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

# Nothing but TensorFlow has been tried to be forked. The commands' own modules are left to the commands.
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
    """`python -m module arguments`, or `python file.py arguments`, begun.

    It has the methods and attributes of `subprocess.Popen` that the tests use.

    Args:
        module: name of a module that is a command, or path of a program.
        arguments: of the command line.
        cwd: the working directory.
        env: the whole environment; default that of this process.
        log: path of a file that takes what it prints, standard output and error; default two files of its own.
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
        """What it has printed up to now."""
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
    """`elrt-name arguments`, ended, as `subprocess.run` with captured text tells it."""
    return _ended(Command(f"elrt_keras.launch.{name}", *arguments, cwd=cwd, env=env), timeout)


def program(text, *arguments, cwd, env=None, timeout=500):
    """A program of Python in `text`, ended, as `subprocess.run` with captured text tells it."""
    with tempfile.NamedTemporaryFile("w", suffix=".py", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        return _ended(Command(file.name, *arguments, cwd=cwd, env=env), timeout)


def _ended(process, timeout):
    output, errors = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
