"""``python -m ranvier.app.worker`` is ``ranvier worker``, with the flags that classic unit files give."""

from ranvier.cli.worker import worker

if __name__ == "__main__":
    worker(prog_name="ranvier worker")
