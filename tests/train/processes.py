"""Runs that need processes of their own."""

import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

from llavit.train.recipe import load_recipe
from llavit.train.stopping import EXIT_STATUS, Stopped
from llavit.train.trainer import LlavitTrainer
from tests.processes import CONTEXT, exit_statuses

TIMEOUT = 180
"""Seconds after which processes count as hanging; they take a few."""


def train_in(
    folder,
    recipe_file,
    *overrides,
    processes=1,
    send=None,
    rank=0,
    step=1,
    group=False,
    nan=False,
    variables=(),
    timeout=TIMEOUT,
):
    """Train in processes of their own.

    Args:
        folder: the run's output.
        recipe_file: of the recipe.
        *overrides: of the recipe.
        processes: how many train together.
        send: a signal that one of them gets.
        rank: which one.
        step: before which step, counted from 0, and from the start of the first stage.
        group: send the signal to all of the process group, data workers too, as SLURM does.
        nan: that process's logits become NaN.
        variables: further ones of their environment, by name.
        timeout: seconds after which they count as hanging.

    Returns:
        their exit statuses; 2 is an error whose message is in the file `FOLDER.error-RANK`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    started = []
    for number in range(processes):
        environment = {**dict(variables), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        if not any(override.startswith("parallel=zero") for override in overrides):
            environment["ACCELERATE_USE_CPU"] = "true"  # with DeepSpeed it is an error
        if processes > 1:
            environment |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(processes)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        mine = (send, step, group, nan) if number == rank else (None, 0, False, False)
        arguments = (environment, str(recipe_file), overrides, str(folder), *mine)
        started.append(CONTEXT.Process(target=_train, args=arguments))
        started[-1].start()
    return exit_statuses(started, timeout)


def _train(environment, recipe_file, overrides, folder, send, step, group, nan):
    os.setsid()  # a process group of its own
    multiprocessing.set_start_method("fork", force=True)  # for data workers, as in an ordinary process
    os.environ |= environment
    from llavit.train.run import train

    taken = 0
    collect = LlavitTrainer.get_batch_samples

    def signalled(self, *args):
        nonlocal taken
        if send is not None and taken == step:
            os.killpg(0, send) if group else os.kill(os.getpid(), send)
        taken += 1
        if nan:
            self.model.lm_head.register_forward_hook(lambda module, args, output: output * float("nan"))
        return collect(self, *args)

    LlavitTrainer.get_batch_samples = signalled
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        train(load_recipe(recipe_file, overrides), output=folder, progress=False)
    except Stopped:
        sys.exit(EXIT_STATUS)
    except (FloatingPointError, ValueError) as error:
        Path(f"{folder}.error-{environment.get('RANK', 0)}").write_text(str(error))
        sys.exit(2)
